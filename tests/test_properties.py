"""Whatever arrives in a field, parameter or header is stored, in NFC, or refused with a sentence; hypothesis helps.

The client checks each response by openapi.yaml too, which has no 500.
"""

import json
import re
import string
import unicodedata
import urllib.parse

import hypothesis
import pytest
from catalogue import CHANGE, CSE115, CSE465, FIELDS, NEW, REQUIRED, TEXTS, course, get_list, make_csv
from hypothesis import strategies
from processes import SQLITE

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
LENGTHS = {"code": (1, 20), "name": (1, 120), "instructor": (0, 120)}  # characters
JSON, CSV, FORM = "application/json", "text/csv", "application/x-www-form-urlencoded"


def whatever(strategy, examples, max_examples=20):
    """Run a test with `sent` out of a strategy, the same at each run, and with each of the examples."""

    def decorate(test):
        for example in examples:
            test = hypothesis.example(sent=example)(test)
        checks = [hypothesis.HealthCheck.function_scoped_fixture]  # each test undoes what it changes
        options = {"derandomize": True, "deadline": None, "suppress_health_check": checks}
        return hypothesis.settings(max_examples=max_examples, **options)(hypothesis.given(sent=strategy)(test))

    return decorate


def kept(field, text):
    """Return what a field stores of a text, or None if it is refused."""
    text, (least, most) = unicodedata.normalize("NFC", text.strip()), LENGTHS[field]
    good = least <= len(text) <= most and not any(unicodedata.category(one) in ("Cc", "Cs") for one in text)
    if field == "code":
        good = good and "/" not in text and text.strip(".")
    return text if good else None


def send(client, method, path, body=b"", content_type=JSON):
    """Send a body, as JSON unless it is bytes; return the response, whatever its status."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.request(path, method=method, body=body, headers={"Content-Type": content_type}, status="*")


def find(client, headers=(), **parameters):
    """Ask for a list; return the response, whatever its status."""
    query = urllib.parse.urlencode(parameters, errors="surrogatepass")
    return client.get(f"/courses?{query}", headers=dict(headers), status="*")


# -- Fields and bodies -------------------------------------------------------------------------------------------------


def quote_all(rows):
    """Return rows as CSV with quotes around each cell; before Python 3.11, csv.writer refuses NUL."""
    lines = [REQUIRED, *([row[field] for field in REQUIRED] for row in rows)]
    quoted = (",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines)
    return "\r\n".join(quoted).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("content_type", [JSON, CSV])
@pytest.mark.parametrize("field", LENGTHS)
@whatever(TEXT, NASTY)
def test_a_field_of_an_upload_is_stored_or_refused(client, content_type, field, sent):
    models.Course.delete().execute()
    rows = [NEW, NEW | {"code": "B"} | {field: sent}, NEW | {"code": "C"}]
    if content_type == CSV:
        response, number = send(client, "POST", "/courses", quote_all(rows), content_type), 3
    else:
        response, number = send(client, "POST", "/courses", rows), 2
        sent = json.loads(json.dumps(sent))
    value = kept(field, unicodedata.normalize("NFC", sent))
    assert response.status_int == (400 if value is None else 201)
    if value is None:
        assert [row["row"] for row in response.json.get("rows", ())] in ([], [number])  # []: not UTF-8, or not CSV
    rows[1][field] = value
    assert get_list(client) == ([] if value is None else rows)


ROUTES = [("POST", "/login"), ("POST", "/courses"), ("PUT", "/courses/CSE115"), ("PATCH", "/courses/CSE115")]
NAMES = strategies.sampled_from([*FIELDS, "username", "password", "id", "courses", ""])
LEAVES = strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats() | TEXT
VALUES = strategies.recursive(
    LEAVES, lambda inner: strategies.lists(inner) | strategies.dictionaries(NAMES, inner), max_leaves=8
)
ODD = [[], {}, [[]], [{}], [None] * 3, {"name": {}}, {"": ""}, {"code": []}, {"courses": []}, {"courses": {}}]
NO_JSON_OBJECT = [
    *(b"", b" \n", b"null", b"5", b'"CSE225"', b"{", b"{} {}", b"code=CSE225", b"\xff", b"\x00" * 100, b"\xef\xbb\xbf"),
    *(b'{"code": NaN}', b'{"name": 1e999}', b"9" * 5000, b'{"code": ' + b"9" * 5000 + b"}", rb'{"name": "\ud800"}'),
    *(b"[" * 60_000, b'{"name":' * 8_000, b"[" * 500 + b"]" * 500, b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    *(b'{"code": "\xff", "name": "a", "instructor": "b"}', json.dumps(NEW).encode("utf-16")),
]


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("POST", "/courses?update=true")])
@whatever(VALUES, ODD)
def test_any_json_is_taken_or_refused(client, method, path, sent):
    assert send(client, method, path, sent).status_int in (200, 201, 204, 400, 404, 409, 429)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@whatever(strategies.binary(), NO_JSON_OBJECT)
def test_any_bytes_are_refused(client, method, path, sent):
    assert send(client, method, path, sent, JSON).status_int == 400
    for content_type in (FORM, CSV):
        assert send(client, method, path, sent, content_type).status_int in (400, 415)
    assert get_list(client) == [CSE115, CSE465]


# -- Parameters --------------------------------------------------------------------------------------------------------

CATALOGUE = [
    course("MATH&151", "Calculus 100%", "Noether, Emmy"),
    course("6.006", "Introduction to [Algorithms]", "Liskov, Barbara"),
    course("AAS 100", "Intro_Asian American Studies?", "Geng, Zhe"),
    course("aas 200", "algorithms at night!", "Geng, Zhe"),
    course("ÉCO 1", "Économie é[x]é*é? ^-", "Ørsted, Ñandú"),
    course("İ \u0131 ß ẞ", "ǅ \u017f ς Σ ŉ", "\ufffd 😀 物"),
    course("' OR 1=1", '"; --', "\\ \\'"),
    course("\u0130\u0307", "e\u0332é1", "ΑΒγδ"),
    course("none", "nobody", ""),
]
WORDS = [row[field] for row in CATALOGUE for field in TEXTS]
LETTERS = sorted({letter for word in WORDS for letter in word + word.lower() + word.upper()})
PARTS = strategies.text(strategies.sampled_from(LETTERS), min_size=1, max_size=3)
SLICES = sorted({word[at : at + 4].swapcase() for word in WORDS for at in range(len(word))})


@pytest.fixture
def catalogue(client):
    """A client of a catalogue of which each letter means something to one language or another."""
    models.Course.delete().execute()
    models.Course.store_courses(CATALOGUE)
    return client


def check_list(response, expected):
    """Check a response by the courses that are expected, None if the query is to be refused."""
    assert response.status_int == (400 if expected is None else 200)
    assert response.json.get("courses") == expected


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


@whatever(PARTS | TEXT, [*NASTY, *SLICES, "é?", "é*1"], max_examples=100)
def test_q_finds_what_a_plain_filter_finds(catalogue, sent):
    everything, q = models.Course.get_all_courses(), kept("instructor", sent)
    check_list(
        find(catalogue, q=sent), None if q is None else [c for c in everything if any(has(c[f], q) for f in TEXTS)]
    )


PLACES = ["1:", ":1", "1:\0", " 1:a ", "1:" + "z" * 120, "1:" + "z" * 121, "9" * 18 + ":", "9" * 19 + ":"]


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-code"])
@whatever(strategies.builds("{}:{}".format, strategies.integers(0, 10**18), PARTS | TEXT) | TEXT, [*NASTY, *PLACES])
def test_after_is_a_place_in_the_order_or_refused(catalogue, sort, sent):
    everything, key, descending = models.Course.get_all_courses(), sort.removeprefix("-"), sort[0] == "-"
    expected = None
    if re.fullmatch(r"[0-9]{1,18}:[^\0\ud800-\udfff]*", sent):
        identity, _, value = sent.partition(":")
        place = (int(identity) if key == "id" else value, int(identity))
        expected = sorted(everything, key=lambda row: (row[key], row["id"]), reverse=descending)
        if descending:
            expected = [row for row in expected if (row[key], row["id"]) < place]
        else:
            expected = [row for row in expected if (row[key], row["id"]) > place]
    check_list(find(catalogue, sort=sort, after=f"{sort}:{sent}"), expected)


# -- Headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer{}", "Basic {}"])
@whatever(LATIN, NASTY_LATIN)
def test_no_other_text_is_a_token(stranger, form, sent):
    assert find(stranger, {"Authorization": form.replace("{}", sent)}).status_int == 401
    assert find(stranger, token=sent).status_int == 401


TAGS = LATIN | strategies.text(strategies.sampled_from('@*W/", x'))  # @ stands for the ETag
NASTY_TAGS = [*NASTY_LATIN, "@", "W/@", "*", '"*"', " * "]


@whatever(TAGS, NASTY_TAGS)
def test_a_condition_holds_only_if_it_names_the_etag(client, sent):
    models.Course.update_course("CSE115", name="Old")
    condition = sent.replace("@", course_api.make_etag(models.Course.get_json("CSE115")))
    names_it = "@" in sent or sent.strip() == "*"
    response = client.get("/courses/CSE115", headers={"If-None-Match": condition}, status=[200, 304])
    assert response.status_int == 200 or names_it
    response = client.patch_json("/courses/CSE115", CHANGE, headers={"If-Match": condition}, status=[204, 412])
    assert response.status_int == 412 or names_it
    assert models.Course.get_course("CSE115")["name"] == ("Basics" if response.status_int == 204 else "Old")


RANGES = strategies.sampled_from([CSV, JSON, "*/*", ";q=", "0.5", "0", "1", ",", ";", " ", "a", '"'])


@whatever(LATIN | strategies.lists(RANGES).map("".join), [*NASTY_LATIN, CSV, CSV + ";q=" + "9" * 5000, "*/*;q=1."])
def test_any_accept_is_answered_with_the_same_courses(catalogue, sent):
    response = catalogue.get("/courses", headers={"Accept": sent}, status=200)
    if response.content_type == CSV:
        assert response.text == make_csv(*CATALOGUE)
    else:
        assert response.json["courses"] == models.Course.get_all_courses()
