"""Part B of the contract, what holds for any request: bodies, paths, methods, and faults; test_tokens.py has tokens."""

import json
import logging

import pytest
import webtest
from catalogue import CSE115, NEW, get
from description import check_error
from faults import sqlite_error

import course_api
import database
import models
from records import XLSX

# -- Bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "types"),
    [
        ("POST", "/login", "application/json or application/x-www-form-urlencoded"),
        ("POST", "/courses", f"application/json or text/csv or application/x-ndjson or {XLSX}"),
        ("PUT", "/courses", f"application/json or text/csv or application/x-ndjson or {XLSX}"),
        ("PUT", "/courses/CSE115", "application/json"),
        ("PATCH", "/courses/CSE115", "application/json"),
    ],
)
def test_every_route_says_what_body_to_send(client, method, path, types):
    for content_type in ("", "text/plain", "application/jsonx", "multipart/form-data"):
        headers = {"Content-Type": content_type}
        response = client.request(path, method=method, body=b"{}", headers=headers, status=415)
        check_error(response, f"send the header Content-Type: {types}, and the body in that form")
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}  # RFC 9110 §8.4
    response = client.request(path, method=method, body=b"\x1f\x8b", headers=headers, status=415)
    check_error(response, "send the body uncompressed, without Content-Encoding")
    assert response.headers["Accept-Encoding"] == "identity"


def test_json_may_begin_with_a_byte_order_mark_and_its_type_may_have_parameters(client):
    body = json.dumps(NEW).encode("utf-8-sig")
    client.post("/courses", body, content_type=" Application/JSON ; charset=utf-8", status=201)


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


def test_a_body_may_be_as_large_as_the_limit_and_not_larger(client, monkeypatch):
    body = json.dumps(NEW).encode()
    monkeypatch.setattr(course_api, "MAX_BODY", len(body) - 1)
    response = client.post("/courses", body, content_type="application/json", status=413)
    check_error(response, f"the body is larger than {len(body) - 1} bytes")
    monkeypatch.setattr(course_api, "MAX_BODY", len(body))
    client.post("/courses", body, content_type="application/json", status=201)


# -- Paths and methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/course", "/courses/CSE115/x", "/login/", "//courses", "/courses/a%2Fb"])
def test_an_unknown_path_is_not_found(client, path):
    for method in ("GET", "POST", "OPTIONS"):
        client.request(path, method=method, status=404)


@pytest.mark.parametrize("path", ["/courses/CSE115%FF", "/courses/%00", "/nowhere%C3"])
def test_a_path_that_is_no_text_is_refused(client, path):
    for method in ("GET", "DELETE"):
        response = client.request(path, method=method, status=400)
        check_error(response, "the path must be percent-encoded UTF-8 without NUL")
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/courses", "DELETE", "GET, HEAD, OPTIONS, POST, PUT"),
        ("/courses/", "PATCH", "GET, HEAD, OPTIONS, POST, PUT"),
        ("/courses/unknown", "POST", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/login", "GET", "OPTIONS, POST"),
        ("/docs", "POST", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_and_the_refusal_of_a_wrong_method_name_those_allowed(stranger, path, method, allowed):
    response = stranger.options(path, status=204)
    assert (response.body, response.headers["Allow"]) == (b"", allowed)
    response = stranger.request(path, method=method, status=405)
    check_error(response, f"{method} is not allowed for {path}; use {allowed.replace(', ', ' or ')}")
    assert response.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/courses", "/courses?limit=1", "/courses/CSE115", "/health", "/openapi.yaml", "/docs"]
)
def test_head_has_the_headers_of_get_and_no_body(client, path):
    head = client.head(path, status=200)
    assert head.body == b""
    assert dict(head.headers) == dict(client.get(path).headers)


# -- Faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda code: 1 / 0,
        lambda code: database.db.execute_sql("SELEKT 1"),
        lambda code: database.db.execute_sql("SELECT nothing FROM courses"),
    ],
    ids=["Python", "syntax of SQL", "a column that is missing"],
)
def test_a_mistake_in_the_code_is_a_500_with_a_traceback_in_the_log_only(app, monkeypatch, caplog, fault):
    client = webtest.TestApp(app)  # openapi.yaml has no 500
    client.authorization = ("Bearer", course_api.make_token("faisal"))
    with monkeypatch.context() as patch:
        patch.setattr(models.Course, "get_json", fault)
        check_error(client.get("/courses/CSE115", status=500), "Internal Server Error")
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]
    client.get("/courses/CSE115", status=200)


@pytest.mark.sqlite
@pytest.mark.parametrize("path", ["/health", "/courses"])
def test_a_database_that_is_not_available_is_a_503(client, monkeypatch, caplog, path):
    def fail(*_):
        raise sqlite_error("IOERR", "disk I/O error at /secret/path")

    monkeypatch.setattr(database.db, "execute_sql", fail)
    response = client.get(path, status=503)
    check_error(response, "the database is not available; try again soon")
    assert response.headers["Retry-After"] == "1"
    assert "/secret/path" in caplog.text and "Traceback" not in caplog.text
