"""Conditional requests with ETags (RFC 9110 §13), and requests from pages of other origins (CORS)."""

import concurrent.futures
import http.client
import threading

import pytest
from catalogue import CHANGE, CSE115, UNKNOWN, get
from description import Client, check_error

import course_api
import settings
from database import db as database
from models import Course

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
    client.patch_json("/courses/CSE115", {"name": "Basics"})
    assert not {get_etag(client, path) for path in READS} & set(first)
    client.patch_json("/courses/CSE115", {"name": CSE115["name"]})
    assert first == [get_etag(client, path) for path in READS]


@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{}', "*"])
def test_what_the_client_has_is_not_sent_again(client, path, form):
    etag = get_etag(client, path)
    for send in (client.get, client.head):
        response = send(path, headers={"If-None-Match": form.format(etag)}, status=304)
        assert (response.body, response.headers["ETag"]) == (b"", etag)
        assert response.headers["Cache-Control"] == "private, no-cache"


def test_what_the_client_does_not_have_is_sent(client):
    for condition in ('"other"', "", get_etag(client).strip('"'), "bare", '"*"'):
        client.get("/courses/CSE115", headers={"If-None-Match": condition}, status=200)


NAMING = ("{}", "W/{}", '"other", {}', "*")  # headers that name the course, if they hold its ETag
NOT_NAMING = ('"other"', 'W/"other"', "", "bare", '"*"')


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("header", "form"),
    [*(("If-Match", form) for form in NAMING), *(("If-None-Match", form) for form in NOT_NAMING)],
)
def test_a_condition_that_holds_lets_a_write_through(client, method, header, form):
    write(client, method, {header: form.format(get_etag(client))}, status=204)


@pytest.mark.parametrize("method", WRITES)
def test_a_condition_that_fails_refuses_a_write(client, method):
    etag = get_etag(client)
    for form in NOT_NAMING:
        check_error(write(client, method, {"If-Match": form.format(etag)}, status=412), CHANGED)
    for form in NAMING:
        check_error(write(client, method, {"If-None-Match": form.format(etag)}, status=412), EXISTS)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_an_unknown_course_is_unknown_whatever_the_condition_says(client, header):
    client.delete("/courses/CSE115")
    for method, status in zip(WRITES, (404, 404, 400), strict=True):
        check_error(write(client, method, {header: "*"}, status=status), UNKNOWN)


def test_a_bad_body_is_refused_before_the_conditions_are_checked(client):
    client.put_json("/courses/CSE115", {}, headers={"If-Match": '"other"'}, status=400)


INTRUSIONS = {
    "changes": Course.update(name="Theirs").where(Course.code == "CSE115"),
    "deletes": Course.delete().where(Course.code == "CSE115"),
}


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize("intrusion", INTRUSIONS.values(), ids=INTRUSIONS)
def test_nothing_can_come_between_the_check_and_the_write(client, monkeypatch, method, intrusion):
    """Another writer comes at the worst moment, when If-Match has been checked already."""
    left = []
    name = "delete_course" if method == "DELETE" else "change_course"
    original = getattr(Course, name)

    def late(*args, **kwargs):
        intrusion.execute()
        left.append(Course.get_course("CSE115"))
        return original(*args, **kwargs)

    monkeypatch.setattr(Course, name, late)
    check_error(write(client, method, {"If-Match": get_etag(client)}, status=412), CHANGED)
    assert left == [Course.get_course("CSE115")]


@pytest.mark.parametrize("header", [{"If-Match": '"other"'}, {"If-None-Match": "*"}])
@pytest.mark.parametrize("method", WRITES)
def test_a_condition_on_a_missing_course_writes_nothing_even_if_it_is_added_then(client, monkeypatch, method, header):
    before = Course.get_all_courses()
    monkeypatch.setattr(Course, "get_json", lambda code: None)  # as it was when the condition was checked
    write(client, method, header, status=[404, 400])
    assert Course.get_all_courses() == before


def test_of_writers_that_race_with_the_same_etag_exactly_one_wins(app, client):
    writers, together = 4, threading.Barrier(4)

    def race(number, etag):
        writer = Client(app)
        writer.authorization = client.authorization
        together.wait(20)
        change = CHANGE | {"name": f"{etag} {number}"}
        response = writer.put_json("/courses/CSE115", change, headers={"If-Match": etag}, expect_errors=True)
        database.close()  # this thread's connection
        return response.status_int, change["name"]

    with concurrent.futures.ThreadPoolExecutor(writers) as threads:
        for _ in range(25):
            results = list(threads.map(race, range(writers), [get_etag(client)] * writers))
            assert sorted(status for status, _ in results) == [204, 412, 412, 412]
            assert get(client, "CSE115")["name"] == dict(results)[204]


# -- CORS --------------------------------------------------------------------------------------------------------------

ORIGIN = "https://a.example"
ALLOWED = {
    "Access-Control-Allow-Origin": ORIGIN,
    "Access-Control-Expose-Headers": "ETag, Link, Location, Retry-After, WWW-Authenticate, X-Total-Count",
}


def cors(response):
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control-")}


@pytest.fixture
def allow(app, monkeypatch):
    """A function that opens the app to pages of these origins, as the setting does."""

    def allow(*origins):
        monkeypatch.setattr(settings, "CORS_ORIGINS", list(origins))
        app.add_hook("after_request", course_api.allow_origin)

    yield allow
    app.remove_hook("after_request", course_api.allow_origin)


def test_no_page_of_another_origin_can_read_by_default(client):
    assert cors(client.get("/courses", headers={"Origin": ORIGIN})) == {}


@pytest.mark.parametrize("origins", [["https://b.example", ORIGIN], ["*"]])
def test_a_page_of_an_allowed_origin_can_read_errors_too(client, allow, origins):
    allow(*origins)
    for path, status in (("/courses", 200), ("/courses?token=bad", 400), ("/nothing", 404), ("/login", 405)):
        response = client.get(path, headers={"Origin": ORIGIN}, status=status)
        assert (cors(response), response.headers["Vary"]) == (ALLOWED, "Accept, Origin")


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [(ORIGIN, "https://a.example.evil"), (ORIGIN, "http://a.example"), (ORIGIN, "null"), (ORIGIN, ""), ("*", "")],
)
def test_a_page_of_another_origin_cannot_read(client, allow, allowed, origin):
    allow(allowed)
    response = client.get("/courses/CSE115", headers={"Origin": origin})
    assert (cors(response), response.headers["Vary"]) == ({}, "Accept, Origin")


@pytest.mark.parametrize(
    ("requested", "allowed"),
    [
        ({"Access-Control-Request-Headers": "authorization, if-match"}, "authorization, if-match"),
        ({}, "Authorization"),
    ],
)
def test_a_preflight_needs_no_token_and_allows_the_headers_it_asks_for(stranger, allow, requested, allowed):
    allow(ORIGIN)
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"} | requested
    answered = cors(stranger.options("/courses/CSE115", headers=headers, status=204))
    assert answered["Access-Control-Allow-Origin"] == ORIGIN
    assert answered["Access-Control-Allow-Methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"
    assert answered["Access-Control-Allow-Headers"] == allowed


def test_the_setting_lists_the_origins(start):
    api = start(CORS_ORIGINS=f"https://B.example, {ORIGIN}")
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://b.example", "https://b.example"), ("https://c.example", None)):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.request("OPTIONS", "/courses", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
        response = connection.getresponse()
        connection.close()
        assert (response.status, response.getheader("Access-Control-Allow-Origin")) == (204, allowed)
