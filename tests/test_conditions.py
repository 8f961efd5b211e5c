"""Conditional requests with ETags (RFC 9110 §13), and requests from pages of other origins (CORS)."""

import concurrent.futures
import http.client
import itertools
import threading

import pytest
from conftest import Client
from description import check_error
from test_contract_inherited import CHANGE, CSE115, UNKNOWN, get

import course_api
import models

CHANGED = "the course has changed; GET it again, and send its new ETag in If-Match"
EXISTS = "the course exists, and If-None-Match names it; leave out that header to change it"
READS = ["/courses", "/courses?limit=1", "/courses/CSE115"]
WRITES = ("PUT", "PATCH", "DELETE")


def get_etag(client, path="/courses/CSE115"):
    return client.get(path).headers["ETag"]


def write(client, method, headers, **options):
    body = {} if method == "DELETE" else {"params": CHANGE}
    send = {"PUT": client.put_json, "PATCH": client.patch_json, "DELETE": client.delete}[method]
    return send("/courses/CSE115", **body, headers=headers, **options)


def test_an_etag_changes_with_the_body_and_only_then(client):
    first = [get_etag(client, path) for path in READS]
    assert first == [get_etag(client, path) for path in READS]
    client.patch_json("/courses/CSE115", {"name": "Basics"})
    assert not {get_etag(client, path) for path in READS} & set(first)
    client.patch_json("/courses/CSE115", {"name": CSE115["name"]})
    assert first == [get_etag(client, path) for path in READS]


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{}', "*"])
def test_what_the_client_has_is_not_sent_again(client, form):
    for path, method in itertools.product(READS, ("GET", "HEAD")):
        etag = get_etag(client, path)
        response = client.request(path, method=method, headers={"If-None-Match": form.format(etag)}, status=304)
        assert (response.body, response.headers["ETag"]) == (b"", etag)
        assert response.headers["Cache-Control"] == "private, no-cache"


def test_what_the_client_does_not_have_is_sent(client):
    for condition in ('"other"', "", get_etag(client).strip('"'), "bare", '"*"'):
        client.get("/courses/CSE115", headers={"If-None-Match": condition}, status=200)


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_if_match_lets_a_write_through_while_the_course_is_as_the_client_knows_it(client, form):
    for method in WRITES:
        write(client, method, {"If-Match": form.format(get_etag(client))}, status=204)


@pytest.mark.parametrize("condition", ['"other"', 'W/"other"', "", "bare", '"*"'])
def test_if_match_refuses_a_write_to_a_course_that_has_changed(client, condition):
    for method in WRITES:
        check_error(write(client, method, {"If-Match": condition}, status=412), CHANGED)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
def test_if_none_match_refuses_a_write_to_a_course_that_it_names(client, form):
    for method in WRITES:
        check_error(write(client, method, {"If-None-Match": form.format(get_etag(client))}, status=412), EXISTS)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("condition", ['"other"', "", "bare"])
def test_if_none_match_lets_a_write_through_to_another_course(client, condition):
    for method in WRITES:
        write(client, method, {"If-None-Match": condition}, status=204)


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_an_unknown_course_is_unknown_whatever_the_condition_says(client, header):
    client.delete("/courses/CSE115")
    for method, status in zip(WRITES, (404, 404, 400), strict=True):
        check_error(write(client, method, {header: "*"}, status=status), UNKNOWN)


def test_a_bad_body_is_refused_before_the_conditions_are_checked(client):
    client.put_json("/courses/CSE115", {}, headers={"If-Match": '"other"'}, status=400)


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("intruder", ["PATCH", "DELETE"])
def test_nothing_can_come_between_the_check_and_the_write(client, monkeypatch, method, intruder):
    """Another writer comes at the worst moment, when If-Match has been checked already."""
    etag = get_etag(client)
    name = "delete_course" if method == "DELETE" else "update_course"
    original = getattr(models.Course, name)

    def late(*args, **kwargs):
        if intruder == "PATCH":
            models.Course.update(name="Theirs").where(models.Course.code == "CSE115").execute()
        else:
            models.Course.delete().where(models.Course.code == "CSE115").execute()
        return original(*args, **kwargs)

    monkeypatch.setattr(models.Course, name, late)
    check_error(write(client, method, {"If-Match": etag}, status=412), CHANGED)
    left = models.Course.get_course("CSE115")
    assert (left and left["name"]) == ("Theirs" if intruder == "PATCH" else None)


def test_of_writers_that_race_with_the_same_etag_exactly_one_wins(app, client):
    writers, together = 4, threading.Barrier(4)

    def race(number, etag):
        writer = Client(app)
        writer.authorization = client.authorization
        together.wait(20)
        change = CHANGE | {"name": f"{etag} {number}"}
        response = writer.put_json("/courses/CSE115", change, headers={"If-Match": etag}, expect_errors=True)
        return response.status_int, change["name"]

    with concurrent.futures.ThreadPoolExecutor(writers) as threads:
        for _ in range(25):
            results = list(threads.map(race, range(writers), [get_etag(client)] * writers))
            assert sorted(status for status, _ in results) == [204, 412, 412, 412]
            assert get(client, "CSE115")["name"] == dict(results)[204]


# -- CORS --------------------------------------------------------------------------------------------------------------

ORIGIN = "https://a.example"


def cors(headers):
    return {name: headers[name] for name in headers if name.startswith("Access-Control-")}


@pytest.fixture
def allow(app, monkeypatch):
    """A function that opens the app to pages of these origins, as the setting does."""

    def allow(*origins):
        monkeypatch.setattr(course_api, "allowed_origins", list(origins))
        app.add_hook("after_request", course_api.allow_origin)

    yield allow
    app.remove_hook("after_request", course_api.allow_origin)


def test_no_page_of_another_origin_can_read_by_default(client):
    assert cors(client.get("/courses", headers={"Origin": ORIGIN}).headers) == {}


def test_a_page_of_an_allowed_origin_can_read(client, allow):
    allow("https://b.example", ORIGIN)
    headers = client.get("/courses", headers={"Origin": ORIGIN}).headers
    exposed = "ETag, Link, Location, Retry-After, WWW-Authenticate, X-Total-Count"
    assert cors(headers) == {"Access-Control-Allow-Origin": ORIGIN, "Access-Control-Expose-Headers": exposed}
    assert headers["Vary"] == "Accept, Origin"


def test_a_page_of_another_origin_cannot(client, allow):
    allow(ORIGIN)
    for origin in ("https://a.example.evil", "http://a.example", "null", ""):
        headers = client.get("/courses/CSE115", headers={"Origin": origin}).headers
        assert (cors(headers), headers["Vary"]) == ({}, "Accept, Origin")


def test_a_star_lets_every_page_read(client, allow):
    allow("*")
    assert client.get("/courses", headers={"Origin": ORIGIN}).headers["Access-Control-Allow-Origin"] == ORIGIN
    assert cors(client.get("/courses").headers) == {}


@pytest.mark.parametrize("requested", ["authorization, if-match", "baggage,sentry-trace", None])
def test_a_preflight_needs_no_token_and_allows_the_headers_it_asks_for(stranger, allow, requested):
    allow(ORIGIN)
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    if requested:
        headers["Access-Control-Request-Headers"] = requested
    answered = cors(stranger.options("/courses/CSE115", headers=headers, status=204).headers)
    assert answered["Access-Control-Allow-Origin"] == ORIGIN
    assert answered["Access-Control-Allow-Methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert answered["Access-Control-Allow-Headers"] == (requested or "Authorization")


def test_a_page_can_read_errors_too(stranger, allow):
    allow(ORIGIN)
    for path, status in (("/courses", 401), ("/nothing", 404), ("/login", 405)):
        response = stranger.get(path, headers={"Origin": ORIGIN}, status=status)
        assert response.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_the_setting_lists_the_origins(start):
    api = start(CORS_ORIGINS=f"https://B.example, {ORIGIN}")
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://b.example", "https://b.example"), ("https://c.example", None)):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.request("OPTIONS", "/courses", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
        response = connection.getresponse()
        connection.close()
        assert (response.status, response.getheader("Access-Control-Allow-Origin")) == (204, allowed)
