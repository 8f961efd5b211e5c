"""Whatever text comes in, in any field, parameter or header, comes back unchanged, or is refused with a sentence."""

import csv
import functools
import io
import json
import re
import string
import unicodedata
import urllib.parse

import hypothesis
import jwt
import pytest
from hypothesis import strategies
from test_contract_inherited import NEW

import course_api
import models

NASTY = [
    *("", " ", "\0", "a\0b", "\r\nX: y", "a\tb", "\x7f", "\x85a\x85", "\u3000a\u3000", "\u2028a", "a\u200b", "\ufeffa"),
    *("\ud800", "a\udfff", "\udc00\ud800", "\ufffe", "\uffff", "\ufffd", "\u202etxt", "e\u0301", "İ", "ß", "ǅ", "K", "ſ"),
    *("a" * 20, "a" * 21, "a" * 80, "a" * 81, "a" * 120, "a" * 121, "😀" * 20, "物" * 120, "a" * 1025, "a" * 200_000),
    *("'", '"', "' OR 1=1 --", '"; DROP TABLE courses; --', "\\", "\\'", "%", "_", "%%%", "*", "?", "[", "]", "[^a]", "!"),
    *("a,b", "a;b", '"a"', "=1+1", "a&b=c", "a+b", "%41", "%zz", "#", "<b>", "{}", "${a}", "{0}", "%s", "null", "NaN"),
    *(".", "..", "../x", "/", "a/b", "...", ".a", "-", "0", "-1", "9" * 5000, "1e9", "٣", "²", "0x1", "1_0", "+1", "1.0"),
]
ANY = strategies.characters(exclude_categories=())  # surrogates too
TEXT = strategies.text(ANY, max_size=30) | strategies.text(ANY, min_size=100, max_size=130)
LATIN = strategies.text(strategies.characters(max_codepoint=255))  # what a header can hold
NASTY_LATIN = [text for text in NASTY if all(character <= "\xff" for character in text)]
LIMITS = {"code": 20, "name": 120, "instructor": 120, "username": 80}  # characters


def whatever(strategy, examples, max_examples=40):
    """Run a test with `text` from a strategy, the same at each run, and with each of the examples."""

    def decorate(test):
        for example in examples:
            test = hypothesis.example(text=example)(test)
        unhealthy = [hypothesis.HealthCheck.function_scoped_fixture]  # each test resets what it changes
        options = {"derandomize": True, "deadline": None, "suppress_health_check": unhealthy}
        return hypothesis.settings(max_examples=max_examples, **options)(hypothesis.given(text=strategy)(test))

    return decorate


any_text = whatever(TEXT, NASTY)
any_header = whatever(LATIN, NASTY_LATIN)


def kept(field, text):
    """Return what a field keeps of a text, None where it is refused."""
    text = text.strip()
    good = 1 <= len(text) <= LIMITS[field] and not any(unicodedata.category(one) in ("Cc", "Cs") for one in text)
    if field == "code":
        good = good and "/" not in text and text.strip(".")
    return text if good else None


def send(client, method, path, body, content_type="application/json", **options):
    """Send a body, of JSON if it is no bytes, with each character that is not ASCII escaped."""
    body = body if isinstance(body, bytes) else json.dumps(body)
    return client.request(path, method=method, body=body.encode() if isinstance(body, str) else body, **options)
