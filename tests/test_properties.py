"""Whatever comes in, in any field, parameter or header, is kept unchanged, or refused with a sentence; hypothesis asks.

Every answer is held to openapi.yaml too (conftest.py), which knows no 500.
"""

import csv
import decimal
import io
import itertools
import json
import re
import string
import unicodedata
import urllib.parse

import hypothesis
import jwt
import pytest
from conftest import SQLITE
from hypothesis import strategies
from test_contract_inherited import NEW, without_id

import course_api
import models

NASTY = [
    *("", " ", "\0", "a\0b", "\r\nX: y", "a\tb", "\x7f", "\x85a\x85", "\u3000a\u3000", "\u2028a", "a\u200b", "\ufeffa"),
    *("\ud800", "a\udfff", "\udc00\ud800", "\ufffe", "\uffff", "\ufffd", "\u202etxt", "e\u0301", "\u017f", "İ", "ß"),
    *("a" * 20, "a" * 21, "a" * 80, "a" * 81, "a" * 120, "a" * 121, "😀" * 20, "物" * 120, "a" * 1025, "a" * 200_000),
    *("' OR 1=1 --", '"; DROP TABLE courses; --', "a b", " a ", "Ada\\", "9" * 5000),
    *("'", '"', "\\", "\\'", "%", "_", "%%", "*", "?", "[", "]", "[^a]", "!", "a,b", "a;b", '"a"', "=1+1", "a&b=c"),
    *("a+b", "%41", "%zz", "#", "<b>", "{}", "${a}", "{0}", "%s", "null", "NaN", ".", "..", "...", ".a", "../x", "/"),
    *("a/b", "-", "0", "-1", "1e9", "٣", "²", "0x1", "1_0", "+1", "1.0"),
]
ANY = strategies.characters(exclude_categories=())  # surrogates too
TEXT = strategies.text(ANY, max_size=30) | strategies.text(ANY, min_size=100, max_size=130)
LATIN = strategies.text(strategies.characters(max_codepoint=255))  # what a header can hold
NASTY_LATIN = [text for text in NASTY if text.isascii()] + ["é", "²", "\xa0", "\x85"]
FIELDS = ("code", "name", "instructor")
MOST = {"code": 20, "name": 120, "instructor": 120, "username": 80}  # characters


def whatever(strategy, examples, max_examples=20):
    """Run a test with `sent` out of a strategy, the same at each run, and with each of the examples."""

    def decorate(test):
        for example in examples:
            test = hypothesis.example(sent=example)(test)
        checks = [hypothesis.HealthCheck.function_scoped_fixture]  # each test puts back what it changes
        options = {"derandomize": True, "deadline": None, "suppress_health_check": checks}
        return hypothesis.settings(max_examples=max_examples, **options)(hypothesis.given(sent=strategy)(test))

    return decorate


def kept(field, text):
    """Return what a field keeps of a text, None where it is refused."""
    text = text.strip()
    good = 1 <= len(text) <= MOST[field] and not any(unicodedata.category(one) in ("Cc", "Cs") for one in text)
    if field == "code":
        good = good and "/" not in text and text.strip(".")
    return text if good else None


def send(client, method, path, body=b"", content_type="application/json", **environ):
    """Send a body, as JSON where it is not bytes; return the answer, whatever its status."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": content_type}
    return client.request(path, method=method, body=body, headers=headers, environ=environ, status="*")


def find(client, headers=(), **parameters):
    """Ask for a list; return the answer, whatever its status."""
    query = urllib.parse.urlencode(parameters, errors="surrogatepass")
    return client.get(f"/courses?{query}", headers=dict(headers), status="*")


# -- Fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", FIELDS)
@whatever(TEXT, NASTY)
def test_a_field_of_a_new_course_is_kept_or_refused(client, field, sent):
    models.Course.delete().execute()
    answer = send(client, "POST", "/courses", NEW | {field: sent})
    value = kept(field, json.loads(json.dumps(sent)))  # which makes one character of two surrogates that are a pair
    assert answer.status_int == (201 if value else 400)
    if value:
        assert without_id(client.get(answer.headers["Location"]).json) == NEW | {field: value}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize("field", ["name", "instructor"])
@whatever(TEXT, NASTY)
def test_a_field_of_a_change_is_kept_or_refused(client, method, field, sent):
    change = {"name": "Basics", "instructor": "Grace Hopper"} if method == "PUT" else {}
    before = models.Course.get_course("CSE115")
    answer = send(client, method, "/courses/CSE115", change | {field: sent})
    value = kept(field, json.loads(json.dumps(sent)))
    assert answer.status_int == (204 if value else 400)
    assert client.get("/courses/CSE115").json == before | (change | {field: value} if value else {})


def make_csv(rows):
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("content_type", ["application/json", "text/csv"])
@pytest.mark.parametrize("field", FIELDS)
@whatever(TEXT, NASTY)
def test_a_field_of_an_upload_is_kept_or_refused(client, content_type, field, sent):
    models.Course.delete().execute()
    rows = [NEW, NEW | {"code": "B"} | {field: sent}, NEW | {"code": "C"}]
    if content_type == "text/csv":
        answer = send(client, "POST", "/courses", make_csv(rows), content_type)
    else:
        answer = send(client, "POST", "/courses", rows)
        sent = json.loads(json.dumps(sent))
    value = kept(field, sent)
    assert answer.status_int == (201 if value else 400)
    assert [row["row"] for row in answer.json.get("rows", ())] in ([], [] if value else [2])
    rows[1][field] = value
    assert [without_id(course) for course in models.Course.get_all_courses()] == (rows if value else [])


# -- Logins ------------------------------------------------------------------------------------------------------------

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
FEW = NASTY[::6]  # a password takes long to check
NUMBERS = itertools.count()


def log_in(client, content_type, username, password):
    """Send a login, each from another address, so that none is refused for those before it."""
    login = {"username": username, "password": password}
    body = urllib.parse.urlencode(login, errors="surrogatepass").encode() if content_type == FORM else login
    return send(client, "POST", "/login", body, content_type, REMOTE_ADDR=f"192.0.2.{next(NUMBERS) % 256}")


@pytest.mark.parametrize("content_type", [JSON, FORM])
@pytest.mark.parametrize("field", ["username", "password"])
@whatever(TEXT, FEW, max_examples=5)
def test_a_wrong_login_is_refused(stranger, content_type, field, sent):
    answer = log_in(
        stranger, content_type, **{"username": f"nobody {next(NUMBERS)}", "password": "wrong"} | {field: sent}
    )
    assert answer.status_int == 400 and "token" not in answer.json


@pytest.mark.parametrize("content_type", [JSON, FORM])
@whatever(TEXT, FEW, max_examples=5)
def test_any_name_and_password_within_the_rules_log_in(stranger, content_type, sent):
    username, password = kept("username", sent), sent[:1024]
    hypothesis.assume(username and not re.search("[\ud800-\udfff]", password))
    models.User.create_user(username, password)
    answer = log_in(stranger, content_type, sent, password)
    models.User.delete().where(models.User.username == username).execute()
    assert answer.status_int == 200
    assert jwt.decode(answer.body, course_api.signing_key(), algorithms=["HS256"])["sub"] == username


# -- Bodies ------------------------------------------------------------------------------------------------------------

ROUTES = [("POST", "/login"), ("POST", "/courses"), ("PUT", "/courses/CSE115"), ("PATCH", "/courses/CSE115")]
NAMES = strategies.sampled_from([*FIELDS, "username", "password", "id", ""])
LEAVES = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | TEXT
VALUES = strategies.recursive(
    LEAVES, lambda inner: strategies.lists(inner) | strategies.dictionaries(NAMES, inner), max_leaves=8
)
DEEP = [
    b"[" * 100_000,
    b'{"name":' * 100_000,
    b"[" * 500 + b"]" * 500,
    b"9" * 5000,
    b'{"name": 1e999}',
    b"\xef\xbb\xbf",
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
@whatever(VALUES, [[], {}, [[]], [{}], [None] * 3, {"name": {}}, {"": ""}, {"code": []}])
def test_any_json_is_taken_or_refused(client, method, path, sent):
    assert send(client, method, path, sent).status_int in (201, 204, 400, 404, 409, 429)


@pytest.mark.parametrize("content_type", [JSON, FORM, "text/csv"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
@whatever(strategies.binary(), DEEP, max_examples=20)
def test_any_bytes_are_refused(client, content_type, method, path, sent):
    assert send(client, method, path, sent, content_type).status_int in (400, 415)


# -- Parameters --------------------------------------------------------------------------------------------------------

CATALOGUE = [
    ("MATH&151", "Calculus 100%", "Noether, Emmy"),
    ("6.006", "Introduction to [Algorithms]", "Liskov, Barbara"),
    ("AAS 100", "Intro_Asian American Studies?", "Geng, Zhe"),
    ("aas 200", "algorithms at night!", "Geng, Zhe"),
    ("ÉCO 1", "Économie é[x]é*é? ^-", "Ørsted, Ñandú"),
    ("İ \u0131 ß ẞ", "ǅ \u017f ς Σ ŉ", "\ufffd 😀 物"),
    ("' OR 1=1", '"; --', "\\ \\'"),
    ("\u0130\u0307", "e\u0301é1", "ΑΒγδ"),
]
TEXTS = "".join(map("".join, CATALOGUE))
LETTERS = sorted({*TEXTS, *TEXTS.lower(), *TEXTS.upper()})
PARTS = strategies.text(strategies.sampled_from(LETTERS), min_size=1, max_size=3)
SLICES = sorted({text[at : at + 4].swapcase() for row in CATALOGUE for text in row for at in range(len(text))})
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]+)?([eE][+-]?[0-9]{1,2})?")  # as in JSON
WHOLE = strategies.integers(-5, 1005).map(str) | TEXT
NUMERALS = ["1", "8", "1000", "1001", "1e2", "1.0", "1.5", "10e-1", "-0", "00", " 1", "1 ", "9" * 18, "9" * 19]
ORDERS = [sign + field for sign in ("", "-") for field in ("id", *FIELDS)]


@pytest.fixture
def catalogue(client):
    """A client, of a catalogue of which each letter means something to one language or another."""
    models.Course.delete().execute()
    models.Course.add_courses(dict(zip(FIELDS, row, strict=True)) for row in CATALOGUE)
    return client


def lower(text):
    return text.translate(str.maketrans(string.ascii_uppercase, string.ascii_lowercase))


def has(text, q):
    """Return whether q is part of a text: ASCII in any case, in another q each letter as its case is in Unicode."""
    if q.isascii():
        return lower(q) in lower(text)
    if SQLITE:  # takes these for one
        q, text = (re.sub("[\ufffe\uffff]", "\ufffd", each) for each in (q, text))
    places = range(len(text) - len(q) + 1)
    return any(all(text[at + i] in (c, c.lower(), c.upper()) for i, c in enumerate(q)) for at in places)


def number(text, least, most):
    """Return the whole number that a text is in JSON, None where it is none or not within the limits."""
    value = decimal.Decimal(text) if NUMBER.fullmatch(text) else -1
    return int(value) if least <= value <= most and value % 1 == 0 else None


def hold(answer, expected):
    """Hold an answer to the courses that are expected, None where it is to be refused."""
    assert answer.status_int == (400 if expected is None else 200)
    assert answer.json.get("courses") == expected


@whatever(PARTS | TEXT, [*NASTY, *SLICES, "é?", "é*1"], max_examples=100)
def test_q_finds_what_a_plain_filter_finds(catalogue, sent):
    everything, q = models.Course.get_all_courses(), kept("name", sent)
    found = [course for course in everything if any(has(course[field], q) for field in FIELDS)] if q else None
    hold(find(catalogue, q=sent), found)


@whatever(strategies.sampled_from([row[2] for row in CATALOGUE]) | TEXT, NASTY)
def test_instructor_finds_what_a_plain_filter_finds(catalogue, sent):
    everything, instructor = models.Course.get_all_courses(), kept("instructor", sent)
    found = [course for course in everything if course["instructor"] == instructor] if instructor else None
    hold(find(catalogue, instructor=sent), found)


@whatever(TEXT, [*NASTY, *ORDERS, "ID", " id", "--id", "id,name"])
def test_sort_is_one_of_the_orders_or_refused(catalogue, sent):
    expected = None
    if sent in ORDERS:
        key = sent.removeprefix("-")
        expected = sorted(models.Course.get_all_courses(), key=lambda course: (course[key], course["id"]))
    hold(find(catalogue, sort=sent), expected[::-1] if sent[:1] == "-" and expected else expected)


@whatever(WHOLE, [*NASTY, *NUMERALS])
def test_limit_is_a_number_or_refused(catalogue, sent):
    limit = number(sent, 1, 1000)
    hold(find(catalogue, limit=sent), limit and models.Course.get_all_courses()[:limit])


@whatever(WHOLE, [*NASTY, *NUMERALS, "1e12", "1e13"])
def test_offset_is_a_number_or_refused(catalogue, sent):
    offset = number(sent, 0, 10**12)
    hold(find(catalogue, offset=sent), None if offset is None else models.Course.get_all_courses()[offset:])


PLACES = ["1:", ":1", "1:\0", " 1:a ", "1:" + "z" * 148, "1:" + "z" * 149, "9" * 18 + ":", "9" * 19 + ":"]


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-code"])
@whatever(strategies.builds("{}:{}".format, strategies.integers(0, 10**18), PARTS | TEXT) | TEXT, [*NASTY, *PLACES])
def test_after_is_a_place_in_the_order_or_refused(catalogue, sort, sent):
    everything, key, descending = models.Course.get_all_courses(), sort.removeprefix("-"), sort[0] == "-"
    expected, after = None, sent.strip()
    if re.fullmatch(r"[0-9]{1,18}:[^\0-\x1f\x7f-\x9f\ud800-\udfff]*", after) and len(after) <= 150:
        identity, _, value = after.partition(":")
        place = (int(identity) if key == "id" else value, int(identity))
        expected = sorted(everything, key=lambda course: (course[key], course["id"]), reverse=descending)
        if descending:
            expected = [course for course in expected if (course[key], course["id"]) < place]
        else:
            expected = [course for course in expected if (course[key], course["id"]) > place]
    hold(find(catalogue, sort=sort, after=sent), expected)


@whatever(TEXT, NASTY)
def test_no_other_text_is_a_token(stranger, sent):
    assert find(stranger, token=sent).status_int == 401


# -- Headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer{}", "Basic {}"])
@whatever(LATIN, NASTY_LATIN)
def test_no_other_header_is_a_token(stranger, form, sent):
    assert find(stranger, {"Authorization": form.replace("{}", sent)}).status_int == 401


@whatever(LATIN | strategies.text(strategies.sampled_from('@*W/", x')), [*NASTY_LATIN, "@", "W/@", "*", '"*"', " * "])
def test_if_none_match_is_a_304_only_where_it_names_the_etag(client, sent):
    etag = course_api.make_etag(models.Course.get_json("CSE115"))
    answer = client.get("/courses/CSE115", headers={"If-None-Match": sent.replace("@", etag)}, status=[200, 304])
    assert answer.status_int == 200 or "@" in sent or sent.strip() == "*"


@whatever(LATIN | strategies.text(strategies.sampled_from('@*W/", x')), [*NASTY_LATIN, "@", "W/@", "*", '"*"', " * "])
def test_if_match_lets_a_write_through_only_where_it_names_the_etag(client, sent):
    models.Course.update_course("CSE115", name="Old")
    headers = {"If-Match": sent.replace("@", course_api.make_etag(models.Course.get_json("CSE115")))}
    answer = client.patch_json("/courses/CSE115", {"name": "New"}, headers=headers, status=[204, 412])
    assert answer.status_int == 412 or "@" in sent or sent.strip() == "*"
    assert models.Course.get_course("CSE115")["name"] == ("New" if answer.status_int == 204 else "Old")


WORDS = strategies.sampled_from(
    ["text/csv", "application/json", "*/*", ";q=", "0.5", "0", "1", ",", ";", " ", "a", '"']
)


@whatever(LATIN | strategies.lists(WORDS).map("".join), [*NASTY_LATIN, "text/csv", "text/csv;q=" + "9" * 5000])
def test_any_accept_is_answered_with_the_same_courses(catalogue, sent):
    answer = catalogue.get("/courses", headers={"Accept": sent}, status=200)
    if answer.content_type == "text/csv":
        assert "text/csv" in sent
        assert list(csv.reader(io.StringIO(answer.text, newline="")))[1:] == [list(row) for row in CATALOGUE]
    else:
        assert answer.json["courses"] == models.Course.get_all_courses()


TYPES = ["application/json", " APPLICATION/JSON ; charset=x", "text/csv", "text/csv;q", "application/json, text/csv"]


@whatever(LATIN | strategies.lists(WORDS).map("".join), [*NASTY_LATIN, *TYPES])
def test_any_content_type_is_one_of_those_or_refused(client, sent):
    models.Course.delete().execute()
    known = {"application/json": 201, "text/csv": 400}
    answer = send(client, "POST", "/courses", NEW, sent)
    assert answer.status_int == known.get(sent.partition(";")[0].strip().lower(), 415)
