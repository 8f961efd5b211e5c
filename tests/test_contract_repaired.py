"""Part B of the contract: where the tutorial crashes, lies, or lets someone in; what is asked of any body and path."""

import json
import logging

import peewee
import pytest
import webtest
from description import check_error
from test_contract_inherited import BOTH, CHANGE, CSE115, NEW, UNKNOWN, get, get_list

import course_api
import models


@pytest.mark.parametrize("method", ["get", "put_json", "patch_json"])
def test_an_unknown_code_is_not_found(client, method):
    body = [] if method == "get" else [CHANGE]
    check_error(getattr(client, method)("/courses/CSE999", *body, status=404), UNKNOWN)


def test_patch_with_both_fields_changes_both(client):
    client.patch_json("/courses/CSE115", CHANGE, status=204)
    assert get(client, "CSE115") == {"code": "CSE115"} | CHANGE


def test_post_of_a_code_that_exists_is_a_conflict_that_names_it(client):
    response = client.post_json("/courses", NEW | {"code": "CSE115"}, status=409)
    check_error(response, "Course code CSE115 is in the courses already")
    assert get(client, "CSE115") == CSE115


def test_codes_are_case_sensitive(client):
    client.post_json("/courses", NEW | {"code": "cse115"}, status=201)
    assert get(client, "CSE115") == CSE115
    client.get("/courses/Cse115", status=404)


@pytest.mark.parametrize(
    ("missing", "error"), [("code", "course code must be provided"), ("name", BOTH), ("instructor", BOTH)]
)
def test_post_without_a_field_asks_for_it(client, missing, error):
    body = {field: value for field, value in NEW.items() if field != missing}
    check_error(client.post_json("/courses", body, status=400), error)


def test_an_empty_instructor_is_stored(client):
    client.post_json("/courses", NEW | {"instructor": " "}, status=201)
    client.patch_json("/courses/CSE115", {"instructor": ""}, status=204)
    assert [course["instructor"] for course in get_list(client)] == ["", "Andrew Ng", ""]


@pytest.mark.parametrize("others", [{"id": "x", "other": [None]}, {"courses": None}, {"courses": {}}])
def test_other_members_of_a_new_course_are_ignored(client, others):
    client.post_json("/courses", NEW | others, status=201)
    assert get(client, "CSE225") == NEW


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"name": "a" * 121}, "name must be 1 to 120 characters, with no control characters"),
        ({"instructor": None}, "instructor must be a string"),
    ],
)
def test_a_field_against_its_rule_is_refused_and_nothing_changes(client, change, error):
    check_error(client.post_json("/courses", NEW | change, status=400), error)
    check_error(client.put_json("/courses/CSE115", CHANGE | change, status=400), error)
    check_error(client.patch_json("/courses/CSE115", change, status=400), error)
    client.get("/courses/CSE225", status=404)
    assert get(client, "CSE115") == CSE115


# -- Bodies ------------------------------------------------------------------------------------------------------------

BAD_JSON = {
    "empty": b"",
    "white space": b" \n",
    "not JSON": b"code=CSE225",
    "cut short": b'{"code": "CSE225", "name": "Da',
    "two objects": b"{} {}",
    "NaN": b'{"code": NaN}',
    "infinity": b'{"code": 1e400}',
    "number of 5,000 digits": b'{"code": ' + b"9" * 5000 + b"}",
    "lone surrogate": rb'{"code": "CSE225", "name": "\ud800", "instructor": "Ada"}',
    "100,000 nested arrays": b'{"code": "A", "other": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "not UTF-8": b'{"code": "\xff", "name": "a", "instructor": "b"}',
    "UTF-16": json.dumps(NEW).encode("utf-16"),
    "NUL": b"\x00" * 100,
}


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON)
def test_a_body_that_is_not_json_is_refused(client, body):
    client.post("/courses", body, content_type="application/json", status=400)
    assert len(get_list(client)) == 2


@pytest.mark.parametrize(
    ("method", "path", "types"),
    [
        ("POST", "/login", "application/json or application/x-www-form-urlencoded"),
        ("POST", "/courses", "application/json or text/csv"),
        ("POST", "/courses/", "application/json or text/csv"),
        ("PUT", "/courses/CSE115", "application/json"),
        ("PATCH", "/courses/CSE115", "application/json"),
    ],
)
def test_every_route_says_what_body_to_send(client, method, path, types):
    def send(body, content_type, status, **headers):
        headers = {"Content-Type": content_type} | headers
        return client.request(path, method=method, body=body, headers=headers, status=status)

    for body in (b"null", b"5", b'"CSE225"', b"{", b"\xff"):
        send(body, "application/json", 400)
    for content_type in ("", "text/plain", "application/jsonx", "multipart/form-data"):
        response = send(json.dumps(NEW).encode(), content_type, 415)
        check_error(response, f"send the header Content-Type: {types}, and the body in that form")
    response = send(b"\x1f\x8b", "application/json", 415, **{"Content-Encoding": "gzip"})  # RFC 9110 §8.4
    check_error(response, "send the body uncompressed, without Content-Encoding")
    assert response.headers["Accept-Encoding"] == "identity"
    assert get(client, "CSE115") == CSE115


def test_json_may_begin_with_a_byte_order_mark(client):
    client.post("/courses", json.dumps(NEW).encode("utf-8-sig"), content_type="application/json", status=201)


def test_the_content_type_may_have_parameters_and_any_case(client):
    client.post("/courses", json.dumps(NEW), content_type="Application/JSON; charset=utf-8", status=201)


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, 400), ({"wsgi.input_terminated": True}, 201), ({"CONTENT_LENGTH": "500"}, 400)],
    ids=["no length and no chunks", "chunks that the server decodes", "a length larger than the body"],
)
def test_a_body_is_read_as_far_as_the_server_says(client, changes, status):
    request = webtest.TestRequest.blank("/courses", method="POST", body=json.dumps(NEW).encode())
    request.headers["Authorization"] = f"Bearer {course_api.make_token('faisal')}"
    request.content_type = "application/json"
    del request.environ["CONTENT_LENGTH"]
    request.environ.update(changes)
    client.do_request(request, status=status)


# -- Paths and methods -------------------------------------------------------------------------------------------------


def test_an_unknown_path_is_not_found(client):
    for path in ("/course", "/courses/CSE115/x", "/login/", "//courses", "/courses/a%2Fb"):
        for method in ("GET", "POST", "OPTIONS"):
            client.request(path, method=method, status=404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/courses", "GET, HEAD, OPTIONS, POST"),
        ("PUT", "/courses/", "GET, HEAD, OPTIONS, POST"),
        ("POST", "/courses/CSE115", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("GET", "/login", "OPTIONS, POST"),
        ("HEAD", "/login", "OPTIONS, POST"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
    ],
)
def test_a_wrong_method_is_answered_with_those_allowed(stranger, method, path, allowed):
    response = stranger.request(path, method=method, status=405)
    assert response.headers["Allow"] == allowed
    if method != "HEAD":
        check_error(response, f"{method} is not allowed for {path}; use {allowed.replace(', ', ' or ')}")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/courses", "GET, HEAD, OPTIONS, POST"),
        ("/courses/unknown", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/login", "OPTIONS, POST"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_lists_the_methods_and_needs_no_token(stranger, path, allowed):
    response = stranger.options(path, status=204)
    assert (response.body, response.headers["Allow"]) == (b"", allowed)


def test_head_has_the_headers_of_get_and_no_body(client):
    for path in ("/courses", "/courses?limit=1", "/courses/CSE115", "/health", "/openapi.yaml", "/docs"):
        head, whole = client.head(path, status=200), client.get(path)
        assert head.body == b""
        assert dict(head.headers) == dict(whole.headers)


@pytest.mark.parametrize("path", ["/courses/CSE115%FF", "/courses/%00", "/nowhere%C3"])
def test_a_path_that_is_no_text_is_refused(client, path):
    for method in ("GET", "DELETE"):
        response = client.request(path, method=method, status=400)
        check_error(response, "the path must be percent-encoded UTF-8 without NUL")
    assert get(client, "CSE115") == CSE115


def test_an_odd_code_in_the_path_is_an_unknown_code(client):
    for code in ("%0A", "CSE115%0A", "%20CSE115", "%25", "a" * 5000, "%F0%9F%98%80"):
        check_error(client.get(f"/courses/{code}", status=404), UNKNOWN)
        check_error(client.delete(f"/courses/{code}", status=400), UNKNOWN)


def test_the_list_and_post_take_a_slash_at_the_end(client):
    assert client.post_json("/courses/", NEW, status=201).headers["Location"] == "/courses/CSE225"
    assert client.get("/courses/").json == client.get("/courses").json


# -- Faults ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(app):
    """A client with a token for tests that provoke a 500, which openapi.yaml does not have."""
    client = webtest.TestApp(app)
    client.authorization = ("Bearer", course_api.make_token("faisal"))
    return client


def test_a_mistake_in_the_code_is_a_500_with_a_traceback_in_the_log_only(faulty, monkeypatch, caplog):
    monkeypatch.setattr(models.Course, "get_page", lambda **_: 1 / 0)
    check_error(faulty.get("/courses", status=500), "Internal Server Error")
    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize("query", ["SELEKT 1 %s", "SELECT nothing FROM courses WHERE code = %s", "SELECT %s FROM gone"])
def test_a_mistake_in_sql_is_a_500_and_no_outage(faulty, monkeypatch, caplog, query):
    monkeypatch.setattr(models, "GET_COURSE", models.sql(query))
    check_error(faulty.get("/courses/CSE115", status=500), "Internal Server Error")
    assert "Traceback" in caplog.text
    monkeypatch.undo()
    faulty.get("/courses/CSE115", status=200)


@pytest.mark.sqlite
@pytest.mark.parametrize("path", ["/health", "/courses", "/courses/CSE115"])
def test_a_database_that_is_not_available_is_a_503(client, monkeypatch, caplog, path):
    def fail(*_):
        raise peewee.OperationalError("disk I/O error at /secret/path")

    monkeypatch.setattr(models.database, "execute_sql", fail)
    response = client.get(path, status=503)
    check_error(response, "the database is not available; try again soon")
    assert response.headers["Retry-After"] == "1"
    assert "/secret/path" in caplog.text and "Traceback" not in caplog.text


def test_health_needs_no_token(stranger):
    assert stranger.get("/health", status=200).json == {"status": "ok"}
