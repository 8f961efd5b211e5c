"""Part B of the contract: where the tutorial crashes, lies, or lets someone in."""

import json

import bottle
import peewee
import pytest
import webtest
from test_contract_inherited import BOTH, CSE115, NEW, get

import course_api
import models

UNKNOWN = {"error": "Course code is not found in the courses"}
WRONG_TYPES = [None, True, 5, 1.5, 10**30, [], ["CSE115"], {}, {"a": 1}]


@pytest.mark.parametrize("method", ["get", "put_json", "patch_json"])
def test_an_unknown_code_is_not_found(client, method):
    body = [] if method == "get" else [{"name": "Basics", "instructor": "Grace Hopper"}]
    assert getattr(client, method)("/courses/CSE999", *body, status=404).json == UNKNOWN


def test_patch_with_both_fields_changes_both(client):
    client.patch_json("/courses/CSE115", {"name": "Basics", "instructor": "Grace Hopper"}, status=204)
    assert get(client, "CSE115") == {"code": "CSE115", "name": "Basics", "instructor": "Grace Hopper"}


def test_post_of_a_code_that_exists_is_a_conflict_that_names_it(client):
    answer = client.post_json("/courses", NEW | {"code": "CSE115"}, status=409)
    assert "CSE115" in answer.json["error"]
    assert get(client, "CSE115") == CSE115


def test_codes_are_case_sensitive(client):
    client.post_json("/courses", NEW | {"code": "cse115"}, status=201)
    assert get(client, "CSE115") == CSE115
    client.get("/courses/Cse115", status=404)


def test_post_without_a_code_asks_for_one(client):
    answer = client.post_json("/courses", {"name": "Basics", "instructor": "Ada"}, status=400)
    assert answer.json == {"error": "course code must be provided"}


@pytest.mark.parametrize("missing", ["name", "instructor"])
def test_post_without_a_name_or_an_instructor_asks_for_both(client, missing):
    body = {field: value for field, value in NEW.items() if field != missing}
    assert client.post_json("/courses", body, status=400).json == {"error": BOTH}


# -- Fields ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["code", "name", "instructor"])
@pytest.mark.parametrize("value", WRONG_TYPES)
def test_a_field_of_the_wrong_type_is_named(client, field, value):
    assert field in client.post_json("/courses", NEW | {field: value}, status=400).json["error"]
    client.get("/courses/CSE225", status=404)


@pytest.mark.parametrize("field", ["name", "instructor"])
@pytest.mark.parametrize("value", [*WRONG_TYPES, "", "  ", "a" * 121, "a\nb", "a\x00b", "\x85b\x9f", "a\x7f"])
@pytest.mark.parametrize("method", ["put_json", "patch_json"])
def test_a_change_with_a_bad_field_changes_nothing(client, field, value, method):
    body = {"name": "Basics", "instructor": "Ada"} | {field: value}
    error = getattr(client, method)("/courses/CSE115", body, status=400).json["error"]
    assert error.startswith((f"{field} must be", f"{field}: "))
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("field", ["name", "instructor"])
def test_a_text_that_is_empty_too_long_or_has_control_characters_is_refused_with_the_rule(client, field):
    rule = f"{field} must be 1 to 120 characters, with no control characters"
    for value in ("", " \t ", "a" * 121, "a\nb", "a\x00b", "a\x1bb", "a\x7fb", "a\x85b", "x" * 1_000_000):
        assert client.post_json("/courses", NEW | {field: value}, status=400).json == {"error": rule}


@pytest.mark.parametrize("code", ["a" * 21, "CSE/115", "/", ".", "..", "....", "A\nB", "A\x00B", "A\x9bB"])
def test_a_bad_code_is_refused_with_the_rule(client, code):
    rule = "code must be 1 to 20 characters, with no / and no control characters, and not only dots"
    assert client.post_json("/courses", NEW | {"code": code}, status=400).json == {"error": rule}


@pytest.mark.parametrize("code", ["a" * 20, "AAS 100", "6.006", "MATH&151", ".a", "é" * 20, "😀" * 20, "\\'\";--"])
def test_a_code_within_the_rule_is_stored_unchanged(client, code):
    location = client.post_json("/courses", NEW | {"code": code}, status=201).headers["Location"]
    assert client.get(location).json["code"] == code


def test_fields_at_their_longest_are_stored_unchanged(client):
    longest = {"code": "語" * 20, "name": "😀" * 120, "instructor": "ñ" * 120}
    location = client.post_json("/courses", longest, status=201).headers["Location"]
    course = client.get(location).json
    assert {field: course[field] for field in longest} == longest


def test_white_space_at_either_end_is_trimmed(client):
    client.post_json("/courses", {"code": " CSE225\t", "name": "\n Data  structures ", "instructor": "\u3000Ada\u00a0"})
    assert get(client, "CSE225") == {"code": "CSE225", "name": "Data  structures", "instructor": "Ada"}


def test_a_code_of_white_space_is_no_code(client):
    answer = client.post_json("/courses", NEW | {"code": "  "}, status=400)
    assert answer.json == {"error": "course code must be provided"}


# -- Bodies ------------------------------------------------------------------------------------------------------------

NOT_OBJECTS = {
    "empty": b"",
    "white space": b" \n",
    "string": b'"CSE225"',
    "null": b"null",
    "number": b"5",
    "not JSON": b"code=CSE225",
    "cut short": b'{"code": "CSE225", "name": "Da',
    "two objects": b"{} {}",
    "NaN": b'{"code": NaN}',
    "infinity": b'{"code": 1e400}',
    "number of 5,000 digits": b'{"code": ' + b"9" * 5000 + b"}",
    "lone high surrogate": rb'{"code": "CSE225", "name": "\ud800", "instructor": "Ada"}',
    "lone low surrogate": rb'{"code": "CSE225", "name": "\udc00 ", "instructor": "Ada"}',
    "100,000 nested arrays": b'{"code": "A", "other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"code": "\xff", "name": "a", "instructor": "b"}',
    "UTF-16": json.dumps(NEW).encode("utf-16"),
    "NUL": b"\x00" * 100,
}


@pytest.mark.parametrize("body", NOT_OBJECTS.values(), ids=NOT_OBJECTS.keys())
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/courses"), ("PUT", "/courses/CSE115"), ("PATCH", "/courses/CSE115"), ("POST", "/login")],
)
def test_a_body_that_is_not_a_json_object_is_refused(client, method, path, body):
    client.request(path, method=method, body=body, content_type="application/json", status=400)
    assert get(client, "CSE115") == CSE115
    client.get("/courses/CSE225", status=404)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
@pytest.mark.parametrize(("method", "path"), [("POST", "/courses"), ("PUT", "/courses/CSE115")])
def test_a_wrong_content_type_is_answered_with_the_header_to_send(client, method, path, content_type):
    body = json.dumps(NEW).encode()
    answer = client.request(path, method=method, body=body, headers={"Content-Type": content_type}, status=415)
    assert "Content-Type: application/json" in answer.json["error"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_the_content_type_may_have_parameters_and_capitals(client, content_type):
    client.post("/courses", json.dumps(NEW), content_type=content_type, status=201)


def test_a_body_that_is_too_large_is_refused(client):
    body = b" " * (course_api.MAX_BODY + 1)
    client.post("/courses", body, content_type="application/json", status=413)


def test_a_body_in_chunks_is_read_where_the_server_decodes_them(client):
    body = json.dumps(NEW).encode()
    request = webtest_request("/courses", body, {"wsgi.input_terminated": True})
    assert client.do_request(request, status=201).headers["Location"] == "/courses/CSE225"


def webtest_request(path, body, environ):
    request = webtest.TestRequest.blank(path, method="POST", body=body, content_type="application/json")
    del request.environ["CONTENT_LENGTH"]
    request.environ.update(environ, HTTP_AUTHORIZATION=f"Bearer {course_api.make_token('faisal')}")
    return request


# -- Login -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{}, {"username": "faisal"}, {"password": "faisal"}])
def test_login_asks_for_both_name_and_password(stranger, body):
    answer = stranger.post_json("/login", body, status=400)
    assert answer.json == {"error": "username and password must be provided"}


@pytest.mark.parametrize("field", ["username", "password"])
@pytest.mark.parametrize("value", [*WRONG_TYPES, "", "a" * 1_000_000])
def test_login_names_a_bad_field(stranger, field, value):
    body = {"username": "faisal", "password": "faisal", field: value}
    assert field in stranger.post_json("/login", body, status=400).json["error"]


def test_a_password_is_taken_as_it_is(stranger):
    models.User.create_user("spacy", " \n ")
    stranger.post_json("/login", {"username": "spacy", "password": " \n "}, status=200)
    stranger.post_json("/login", {"username": "spacy", "password": "\n"}, status=400)


def test_a_token_is_not_to_be_cached(stranger):
    answer = stranger.post_json("/login", {"username": "faisal", "password": "faisal"})
    assert answer.headers["Cache-Control"] == "no-store"


# -- Paths, methods, faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/course", "/courses/CSE115/x", "/login/", "//courses", "/courses/a%2Fb"])
def test_an_unknown_path_is_not_found(client, path):
    client.get(path, status=404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/courses", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/courses/CSE115", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("GET", "/login", "OPTIONS, POST"),
        ("HEAD", "/login", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(stranger, method, path, allowed):
    assert stranger.request(path, method=method, status=405).headers["Allow"] == allowed


def test_a_path_that_is_not_utf8_reaches_no_course(client):
    for method in ("GET", "DELETE"):
        client.request("/courses/CSE115%FF", method=method, status=400)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("code", ["%00", "a%00b", "%0A", "CSE115%0A", "%20CSE115", "%25", "a" * 5000, "%F0%9F%98%80"])
def test_an_odd_code_in_the_path_is_an_unknown_code(client, code):
    assert client.get(f"/courses/{code}", status=404).json == UNKNOWN
    assert client.delete(f"/courses/{code}", status=400).json == UNKNOWN


def test_a_fault_shows_no_traceback(client, monkeypatch):
    monkeypatch.setattr(models.Course, "get_page", lambda *_: 1 / 0)
    answer = client.get("/courses", status=500, expect_errors=True)
    assert answer.json == {"error": "Internal Server Error"}


@pytest.mark.parametrize("path", ["/health", "/courses", "/courses/CSE115"])
def test_a_database_that_does_not_answer_is_unavailable(client, monkeypatch, path):
    def fail(*_):
        raise peewee.OperationalError("disk I/O error at /secret/path")

    monkeypatch.setattr(models.database, "execute_sql", fail)
    answer = client.get(path, status=503)
    assert int(answer.headers["Retry-After"]) > 0
    assert "secret" not in answer.text


def test_health_needs_no_token(stranger):
    assert stranger.get("/health", status=200).json == {"status": "ok"}


def test_head_answers_like_get_without_a_body(client):
    answer = client.head("/courses/CSE115", status=200)
    assert (answer.body, answer.content_length) == (b"", client.get("/courses/CSE115").content_length)


def test_an_answer_is_json_if_it_says_nothing_else():
    assert bottle.Response.default_content_type == "application/json"
