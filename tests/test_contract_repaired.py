"""Part B of the contract, what holds for any request: bodies, paths, methods, and faults; test_tokens.py has tokens."""

import json
import logging
import threading
import urllib.parse
from urllib.parse import quote, urlencode

import pytest
import webtest
from catalogue import CHANGE, CSE115, NEW, codes, course, get, insert, join_with_or, make_token
from description import check_error
from faults import constraint, sqlite_error

import course_api
import database
import models
from records import XLSX

# -- Bodies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "types"),
    [
        ("POST", "/login", "application/json or application/x-www-form-urlencoded"),
        ("POST", "/courses", f"application/json, text/csv, application/x-ndjson or {XLSX}"),
        ("PUT", "/courses", f"application/json, text/csv, application/x-ndjson or {XLSX}"),
        ("PUT", "/courses/CSE115", "application/json"),
        ("PATCH", "/courses/CSE115", "application/json or application/merge-patch+json"),
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


@pytest.mark.parametrize("content_encoding", ["identity", "Identity"])
def test_a_body_that_says_it_is_not_compressed_is_good(client, content_encoding):
    client.post_json("/courses", NEW, headers={"Content-Encoding": content_encoding}, status=201)


def test_a_merge_patch_is_json(client):
    """RFC 7396"""
    body = json.dumps({"instructor": "Grace Hopper"})
    client.patch("/courses/CSE115", body, content_type="application/merge-patch+json; charset=utf-8", status=204)
    assert get(client, "CSE115") == CSE115 | {"instructor": "Grace Hopper"}
    client.put("/courses/CSE115", body, content_type="application/merge-patch+json", status=415)


@pytest.mark.parametrize("method", ["put_json", "patch_json"])
def test_the_code_of_a_course_cannot_be_changed(client, method):
    change, send = {"name": "Basics", "instructor": "Grace Hopper"}, getattr(client, method)
    for code in ("CSE225", "cse115", "", 5, None):
        response = send("/courses/CSE115", change | {"code": code}, status=400)
        error = "the code of a course cannot be changed; send CSE115 as in the path, or leave it out"
        check_error(response, error)
    assert get(client, "CSE115") == CSE115
    send("/courses/CSE115", change | {"code": " CSE115 "}, status=204)
    client.post_json("/courses", NEW | {"code": "\xc9CO"}, status=201)
    send("/courses/%C3%89CO", change | {"code": "E\u0301CO"}, status=204)  # the same text in another form of Unicode


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
    request.headers["Authorization"] = f"Bearer {make_token('faisal')}"
    request.content_type = "application/json"
    del request.environ["CONTENT_LENGTH"]
    request.environ.update(changes)
    client.do_request(request, status=status)


@pytest.mark.parametrize("length", ["two", "\u00b2", "9" * 5000])
@pytest.mark.parametrize(
    "route", ["GET /courses", "POST /courses", "DELETE /courses/CSE115", "POST /login", "GET /health"]
)
@pytest.mark.usefixtures("client")
def test_a_length_that_is_no_number_is_refused_where_the_server_lets_it_pass(route, length):
    method, path = route.split()
    request = webtest.TestRequest.blank(path, method=method)
    request.headers["Authorization"] = f"Bearer {make_token('faisal')}"
    request.environ["CONTENT_LENGTH"] = length
    response = request.get_response(course_api.app)
    assert response.status_code == 400
    check_error(response, "Content-Length must be a whole number")


LARGE = {"POST /login": 400, "PUT /courses/CSE115": 204, "PATCH /courses/CSE115": 204, "POST /courses": 201}


@pytest.mark.parametrize("route", LARGE)
def test_a_body_may_be_as_large_as_the_limit_and_not_larger(client, route):
    method, path = route.split()
    is_upload = path == "/courses"
    limit, size = (16 * 2**20, "16 MiB; send the courses in several requests") if is_upload else (2**16, "64 KiB")
    body = json.dumps(NEW if is_upload else CHANGE).encode().ljust(limit)
    headers = {"Content-Type": "application/json"}
    response = client.request(path, method=method, body=body + b" ", headers=headers, status=413)
    check_error(response, f"the body is larger than {size}")
    client.request(path, method=method, body=body, headers=headers, status=LARGE[route])


@pytest.mark.parametrize(("method", "path"), [("POST", "/login"), ("PUT", "/courses/CSE115"), ("PATCH", "/courses/NO")])
def test_a_body_that_no_token_allows_is_refused_before_the_token_is_checked(stranger, method, path):
    response = stranger.request(path, method=method, body=b" " * (2**16 + 1), status=413)
    check_error(response, "the body is larger than 64 KiB")


def test_a_large_upload_is_refused_without_a_good_token_and_to_readers_before_it_is_parsed(client, stranger):
    request = {"method": "POST", "body": b"[" * (2**16 + 1), "headers": {"Content-Type": "application/json"}}
    assert stranger.request("/courses", **request, status=401).json["error"] == "Invalid token"
    models.User.create_user("reader", "reader", read_only=True)
    for name, status in (("reader", 403), ("nobody", 401), ("faisal", 400)):
        user = models.User.get_or_none(models.User.username == name)
        client.authorization = ("Bearer", course_api.make_token(name, user.stamp if user else ""))
        client.request("/courses", **request, status=status)


def test_too_many_large_uploads_at_once_are_a_503(client, monkeypatch):
    monkeypatch.setattr(course_api, "upload_slots", threading.BoundedSemaphore(1))
    body = json.dumps(NEW).encode().ljust(2**16 + 1)
    with course_api.upload_slots:
        response = client.post("/courses", body, content_type="application/json", status=503)
        check_error(response, "too many uploads at once; try again soon")
        assert response.headers["Retry-After"] == "1"
    client.post("/courses", body, content_type="application/json", status=201)


def test_options_of_the_whole_server_is_a_204(stranger):
    request = webtest.TestRequest.blank("/", method="OPTIONS", environ={"PATH_INFO": "*"})
    webtest.TestApp(course_api.app, lint=False).do_request(request, status=204)


# -- Paths and methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "next_step"),
    [
        ("/docs/", "use /docs"),
        ("/Docs", "use /docs"),
        ("/courses/CSE115/", "use /courses/CSE115"),
        ("/course/AAS%20100", "use /courses/AAS%20100"),
        ("//courses", "use /courses"),
        ("/openapi.json", "use /openapi.yaml"),
        ("/login/", "use /login"),
        ("/healthz", "use /health"),
        ("/courses/CSE115/x", "see /docs for what there is"),
        ("/courses/a%2Fb", "see /docs for what there is"),
        ("/index.html", "see /docs for what there is"),
    ],
)
def test_an_unknown_path_is_not_found_and_the_error_says_where_to_look(client, path, next_step):
    for method in ("GET", "POST", "OPTIONS"):
        response = client.request(path, method=method, status=404)
        check_error(response, f"there is nothing at {urllib.parse.unquote(path)}; {next_step}")


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
    check_error(response, f"{method} is not allowed for {path}; use {join_with_or(allowed.split(', '))}")
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
    client.authorization = ("Bearer", make_token("faisal"))
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


def test_a_course_refused_by_a_constraint_of_another_program_is_a_500_with_a_traceback(client, caplog):
    with constraint("name <> 'Bad'"):
        for body in (NEW | {"name": "Bad"}, [NEW | {"name": "Bad"}]):
            strict = webtest.TestApp(client.app)  # openapi.yaml has no 500
            strict.authorization = client.authorization
            check_error(strict.post_json("/courses", body, status=500), "Internal Server Error")
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    client.post_json("/courses", NEW, status=201)


# -- Unicode -----------------------------------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = "É 1", "E\u0301 1"


def test_text_is_stored_and_found_in_nfc_whatever_form_a_request_has(client):
    row = course(DECOMPOSED, f"Name {DECOMPOSED}", f"Instructor {DECOMPOSED}")
    client.post_json("/courses", row, status=201)
    assert get(client, quote(COMPOSED)) == course(COMPOSED, f"Name {COMPOSED}", f"Instructor {COMPOSED}")
    client.post_json("/courses", row | {"code": COMPOSED}, status=409)
    client.patch_json(f"/courses/{quote(DECOMPOSED)}", {"name": DECOMPOSED}, status=204)
    assert get(client, quote(DECOMPOSED))["name"] == COMPOSED
    for query in ({"q": DECOMPOSED}, {"instructor": f"Instructor {DECOMPOSED}"}):
        assert codes(client.get(f"/courses?{urlencode(query)}")) == [COMPOSED]
    client.delete(f"/courses/{quote(DECOMPOSED)}", status=204)
    client.get(f"/courses/{quote(COMPOSED)}", status=404)


def test_a_code_that_an_earlier_release_stored_in_another_form_is_found_by_that_form_alone(client):
    insert(course(DECOMPOSED, "Old", ""))
    client.get(f"/courses/{quote(COMPOSED)}", status=404)
    client.post_json("/courses", course(COMPOSED, "New", ""), status=201)
    assert [get(client, quote(code))["name"] for code in (DECOMPOSED, COMPOSED)] == ["Old", "New"]
    client.put_json(f"/courses/{quote(DECOMPOSED)}", CHANGE, status=204)
    client.delete(f"/courses/{quote(DECOMPOSED)}", status=204)
    assert get(client, quote(COMPOSED))["name"] == "New"


def test_a_user_and_a_password_are_the_same_in_any_form(client, stranger):
    models.User.create_user(f"grace {DECOMPOSED}", f"hopper {DECOMPOSED}")
    for form in (COMPOSED, DECOMPOSED):
        stranger.post_json("/login", {"username": f"grace {form}", "password": f"hopper {form}"}, status=200)
