"""Conditional requests with ETags (RFC 9110 §13), and requests from pages of other origins (CORS)."""

import concurrent.futures
import http.client
import threading

import pytest
from catalogue import CHANGE, CSE115, NEW, UNKNOWN, get
from description import Client, check_error

import course_api
import settings
from database import db as database
from models import Course, User

CHANGED = "the course has changed; GET it again, and send its new ETag in If-Match"
EXISTS = "the course exists, and If-None-Match names it; leave out that header to change it"
READS = ["/courses", "/courses?limit=1", "/courses/CSE115"]
WRITES = ("PUT", "PATCH", "DELETE")
# What proxies make of an ETag, whose digits are 0: bare, as Apache, nginx and others write it, in a list, unquoted.
FORMS = ('"{0}"', 'W/"{0}"', '"{0}-gzip"', '"{0}-br"', '"{0}--gzip"', 'W/"{0}-gzip"', '"{0};br"', '"{0}/zstd"')
FORMS += ('"other", "{0}"', '"other",W/"{0}-br"', "{0}", "W/{0}", "*")


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
@pytest.mark.parametrize("form", FORMS)
def test_what_the_client_has_is_not_sent_again(client, path, form):
    etag = get_etag(client, path)
    for send in (client.get, client.head):
        response = send(path, headers={"If-None-Match": form.format(etag.strip('"'))}, status=304)
        assert (response.body, response.headers["ETag"]) == (b"", etag)
        assert response.headers["Cache-Control"] == "private, no-cache"


def test_what_the_client_does_not_have_is_sent(client):
    for condition in ('"other"', "", get_etag(client)[1:-2], "bare", '"*"'):
        client.get("/courses/CSE115", headers={"If-None-Match": condition}, status=200)


NOT_NAMING = ('"other"', 'W/"other"', "", "bare", '"*"')


@pytest.mark.parametrize("method", WRITES)
@pytest.mark.parametrize(
    ("header", "form"),
    [*(("If-Match", form) for form in FORMS), *(("If-None-Match", form) for form in NOT_NAMING)],
)
def test_a_condition_that_holds_lets_a_write_through(client, method, header, form):
    write(client, method, {header: form.format(get_etag(client).strip('"'))}, status=204)


@pytest.mark.parametrize("method", WRITES)
def test_a_condition_that_fails_refuses_a_write(client, method):
    etag = get_etag(client)
    for form in NOT_NAMING:
        check_error(write(client, method, {"If-Match": form.format(etag)}, status=412), CHANGED)
    for form in FORMS:
        condition = form.format(etag.strip('"'))
        check_error(write(client, method, {"If-None-Match": condition}, status=412), EXISTS)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_an_unknown_course_is_unknown_whatever_the_condition_says(client, header):
    client.delete("/courses/CSE115")
    for method, status in zip(WRITES, (404, 404, 400), strict=True):
        check_error(write(client, method, {header: "*"}, status=status), UNKNOWN)


def test_a_bad_body_is_refused_before_the_conditions_are_checked(client):
    client.put_json("/courses/CSE115", {}, headers={"If-Match": '"other"'}, status=400)


@pytest.mark.parametrize("condition", ["*", '"other"', ""])
def test_adding_courses_takes_no_if_match(client, condition):
    for body in (NEW, [NEW]):
        response = client.post_json("/courses", body, headers={"If-Match": condition}, status=400)
        error = "If-Match has no meaning here; leave it out, or send it with PUT or PATCH to a course"
        check_error(response, error)
    assert [row["code"] for row in Course.get_all_courses()] == ["CSE115", "CSE465"]


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


# -- Prefer (RFC 7240) -------------------------------------------------------------------------------------------------

PREFER = {"Prefer": "return=representation"}


def check_representation(client, response, path):
    """Check that a response to a write is the course as a GET returns it."""
    read = client.get(path)
    assert (response.json, response.headers["ETag"]) == (read.json, read.headers["ETag"])
    assert response.headers["Preference-Applied"] == "return=representation"
    assert response.headers["Location"] == path


def test_a_write_returns_the_course_if_the_client_prefers_that(client):
    response = client.post_json("/courses", NEW, headers=PREFER, status=201)
    check_representation(client, response, f"/courses/{NEW['code']}")
    response = client.put_json("/courses/CSE115", CHANGE, headers=PREFER, status=200)
    check_representation(client, response, "/courses/CSE115")
    assert get(client, "CSE115") == CSE115 | CHANGE
    condition = {"If-Match": response.headers["ETag"]}
    response = client.patch_json("/courses/CSE115", {"name": "Again"}, headers=PREFER | condition, status=200)
    check_representation(client, response, "/courses/CSE115")
    client.patch_json("/courses/CSE115", {"name": "Late"}, headers=PREFER | condition, status=412)


@pytest.mark.parametrize(
    ("prefer", "status"),
    [
        ("respond-async, Return = Representation; x=1", 200),
        ('return="representation"', 200),
        ("return=representation, return=minimal", 200),
        ("return=minimal, return=representation", 204),
        ("return=minimal", 204),
        ("handling=strict; return=representation", 204),
        ("representation", 204),
        ("", 204),
    ],
)
def test_preferences_are_read_as_the_rfc_has_them(client, prefer, status):
    response = client.patch_json("/courses/CSE115", CHANGE, headers={"Prefer": prefer}, status=status)
    assert ("Preference-Applied" in response.headers) == bool(response.body) == (status == 200)


def test_what_returns_no_course_ignores_the_preference(client):
    assert client.post_json("/courses", [NEW], headers=PREFER, status=201).json == {"created": 1}
    client.delete(f"/courses/{NEW['code']}", headers=PREFER, status=204)


def test_a_refused_write_is_refused_whatever_the_client_prefers(client):
    client.post_json("/courses", CSE115, headers=PREFER, status=409)
    client.patch_json("/courses/nothing", CHANGE, headers=PREFER, status=404)
    client.patch_json("/courses/CSE115", CHANGE, headers=PREFER | {"If-Match": '"other"'}, status=412)
    User.update(read_only=True).execute()
    try:
        client.post_json("/courses", NEW, headers=PREFER, status=403)
        client.patch_json("/courses/CSE115", CHANGE, headers=PREFER, status=403)
    finally:
        User.update(read_only=False).execute()
    assert get(client, "CSE115") == CSE115


def test_the_course_that_a_write_returns_is_what_this_write_has_made(app, client):
    """Others change the same course all the time."""
    writers, together = 4, threading.Barrier(4)

    def write(number):
        writer = Client(app)
        writer.authorization = client.authorization
        together.wait(20)
        names = [f"{number} {again}" for again in range(25)]
        try:
            responses = [writer.patch_json("/courses/CSE115", {"name": name}, headers=PREFER) for name in names]
        finally:
            database.close()  # this thread's connection
        return names, [response.json["name"] for response in responses]

    with concurrent.futures.ThreadPoolExecutor(writers) as threads:
        for sent, returned in threads.map(write, range(writers)):
            assert returned == sent


# -- CORS --------------------------------------------------------------------------------------------------------------

ORIGIN = "https://a.example"
ALLOWED = {
    "Access-Control-Allow-Origin": ORIGIN,
    "Access-Control-Expose-Headers": "Content-Disposition, ETag, Link, Location, Preference-Applied, Retry-After, "
    "WWW-Authenticate, X-Total-Count",
}


def cors(response):
    return {name: value for name, value in response.headers.items() if name.startswith("Access-Control-")}


@pytest.fixture
def allow(app, monkeypatch):
    """A function that opens the app to pages of these origins, as the setting does."""

    def allow(*origins):
        monkeypatch.setattr(settings, "CORS_ORIGINS", settings.origins(", ".join(origins)))
        app.add_hook("before_request", course_api.answer_preflight)
        app.add_hook("after_request", course_api.allow_origin)

    yield allow
    app.remove_hook("before_request", course_api.answer_preflight)
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
    [
        *(
            (ORIGIN, origin)
            for origin in ("https://a.example.evil", "http://a.example", "https://axexample", "null", "")
        ),
        *(("https://*.a.example", origin) for origin in (ORIGIN, "https://.a.example", "https://xa.example")),
        *(("https://*.a.example", origin) for origin in ("http://x.a.example", "https://x.a.example:8443")),
        *(("https://*.a.example", origin) for origin in ("https://b.example/x.a.example", "https://x@b.a.example")),
        ("*", ""),
    ],
)
def test_a_page_of_another_origin_cannot_read(client, allow, allowed, origin):
    allow(allowed)
    response = client.get("/courses/CSE115", headers={"Origin": origin})
    assert (cors(response), response.headers["Vary"]) == ({}, "Accept, Origin")


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("https://*.a.example", "https://x.a.example"),
        ("https://b.example https://*.a.example", "https://x-1.y.a.example"),
        ("http://*.a.example:8080", "http://x.a.example:8080"),
        ("app://localhost", "app://localhost"),
    ],
)
def test_a_setting_can_name_every_subdomain(client, allow, allowed, origin):
    allow(allowed)
    response = client.get("/courses/CSE115", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin


@pytest.mark.parametrize("path", ["/courses", "/nothing", "/courses/CSE115/", "/courses/a/b"])
def test_a_preflight_of_an_allowed_page_is_good_on_every_path(stranger, allow, path):
    allow(ORIGIN)
    asks = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answered = cors(stranger.options(path, headers=asks | {"Origin": ORIGIN}, status=204))
    assert answered["Access-Control-Allow-Headers"] == "authorization"
    stranger.options(path, headers=asks | {"Origin": "https://b.example"}, status=204 if path == "/courses" else 404)
    stranger.options(path, headers={"Origin": ORIGIN}, status=204 if path == "/courses" else 404)  # no preflight


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
    api = start(CORS_ORIGINS=f"https://b.example, {ORIGIN}")
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://b.example", "https://b.example"), ("https://c.example", None)):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.request("OPTIONS", "/courses", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
        response = connection.getresponse()
        connection.close()
        assert (response.status, response.getheader("Access-Control-Allow-Origin")) == (204, allowed)
