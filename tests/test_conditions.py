"""Part C of the contract: ETags and conditional requests (RFC 9110 §13), HEAD, OPTIONS and CORS."""

import concurrent.futures
import threading

import pytest
from conftest import Client
from test_contract_inherited import CSE115, get

import models

CHANGE = {"name": "Basics", "instructor": "Grace Hopper"}
LISTS = ["/courses", "/courses?limit=1", "/courses/CSE115"]


def etag(client, path="/courses/CSE115"):
    return client.get(path).headers["ETag"]


@pytest.mark.parametrize("path", LISTS)
def test_an_etag_changes_with_the_body_and_only_then(client, path):
    first = etag(client, path)
    assert first.startswith('"') and first == etag(client, path)
    client.patch_json("/courses/CSE115", {"name": "Basics"})
    assert etag(client, path) != first
    client.patch_json("/courses/CSE115", {"name": CSE115["name"]})
    assert etag(client, path) == first


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '"other",W/{}', "*"])
def test_what_the_client_has_is_not_sent_again(client, path, form):
    known = etag(client, path)
    for method in ("GET", "HEAD"):
        answer = client.request(path, method=method, headers={"If-None-Match": form.format(known)}, status=304)
        assert (answer.body, answer.headers["ETag"]) == (b"", known)


@pytest.mark.parametrize("form", ['"other"', "", "{}x", "bare", '"*"'])
def test_what_the_client_does_not_have_is_sent(client, form):
    condition = form.format(etag(client).strip('"'))
    client.get("/courses/CSE115", headers={"If-None-Match": condition}, status=200)


def write(client, method, condition, **options):
    body = {} if method == "DELETE" else {"params": CHANGE}
    send = {"PUT": client.put_json, "PATCH": client.patch_json, "DELETE": client.delete}[method]
    return send("/courses/CSE115", **body, headers={"If-Match": condition}, **options)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("form", ["{}", '"other", {}', "*"])
def test_a_write_goes_through_while_the_course_is_as_the_client_knows_it(client, method, form):
    write(client, method, form.format(etag(client)), status=204)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("form", ['"other"', "W/{}", "", "bare"])
def test_a_write_to_a_course_that_has_changed_is_refused(client, method, form):
    write(client, method, form.format(etag(client)), status=412)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("intruder", ["PATCH", "DELETE"])
def test_nothing_can_come_between_the_check_and_the_write(client, monkeypatch, method, intruder):
    """Another writer comes at the worst moment, when If-Match has been checked already."""
    known = etag(client)
    names = {"PUT": "update_course", "PATCH": "update_course", "DELETE": "delete_course"}
    honest = getattr(models.Course, names[method])

    def late(*arguments):
        if intruder == "PATCH":
            models.Course.update(name="Theirs").where(models.Course.code == "CSE115").execute()
        else:
            models.Course.delete().where(models.Course.code == "CSE115").execute()
        return honest(*arguments)

    monkeypatch.setattr(models.Course, names[method], late)
    write(client, method, known, status=412)
    left = models.Course.get_course("CSE115")
    assert (left and left["name"]) == ("Theirs" if intruder == "PATCH" else None)


def test_of_writers_that_race_with_the_same_etag_exactly_one_wins(app, client):
    writers, together = 4, threading.Barrier(4)

    def race(number, known):
        writer = Client(app)
        writer.authorization = client.authorization
        together.wait(20)
        change = CHANGE | {"name": f"{known} {number}"}
        headers = {"If-Match": known}
        answer = writer.put_json("/courses/CSE115", change, headers=headers, expect_errors=True)
        return answer.status_int, change["name"]

    with concurrent.futures.ThreadPoolExecutor(writers) as threads:
        for _ in range(25):
            results = list(threads.map(race, range(writers), [etag(client)] * writers))
            assert sorted(status for status, _ in results) == [204, 412, 412, 412]
            assert get(client, "CSE115")["name"] == dict(results)[204]


@pytest.mark.parametrize(("method", "status"), [("PUT", 404), ("PATCH", 404), ("DELETE", 400)])
def test_an_unknown_course_is_unknown_whatever_if_match_says(client, method, status):
    client.delete("/courses/CSE115")
    write(client, method, "*", status=status)


def test_a_bad_body_is_refused_before_if_match_is_looked_at(client):
    client.put_json("/courses/CSE115", {}, headers={"If-Match": '"other"'}, status=400)


# -- HEAD and OPTIONS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*LISTS, "/health", "/openapi.yaml", "/docs", "/docs/swagger_style.css"])
def test_head_answers_like_get_without_a_body(client, path):
    head, whole = client.head(path, status=200), client.get(path)
    assert head.body == b""
    assert {name: head.headers[name] for name in whole.headers if name != "Date"} == {
        name: whole.headers[name] for name in whole.headers if name != "Date"
    }


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/courses", "GET, HEAD, OPTIONS, POST"),
        ("/courses/CSE115", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/courses/unknown", "DELETE, GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/login", "OPTIONS, POST"),
        ("/docs", "GET, HEAD, OPTIONS"),
    ],
)
def test_options_says_what_is_allowed_and_needs_no_token(stranger, path, allowed):
    answer = stranger.options(path, status=204)
    assert (answer.body, answer.headers["Allow"]) == (b"", allowed)


def test_options_of_an_unknown_path_is_not_found(stranger):
    stranger.options("/course", status=404)


# -- CORS --------------------------------------------------------------------------------------------------------------

ORIGIN = "https://a.example"


def cors(headers):
    return {name: headers[name] for name in headers if name.startswith("Access-Control-")}


@pytest.fixture
def open_to(app, monkeypatch):
    """A function that opens the app to pages of these origins, as the setting does."""
    import course_api

    def open_to(*origins):
        monkeypatch.setattr(course_api, "ORIGINS", list(origins))
        app.add_hook("after_request", course_api.allow_origin)

    yield open_to
    app.remove_hook("after_request", course_api.allow_origin)


def test_no_page_of_another_origin_is_let_in_by_default(client):
    answer = client.get("/courses", headers={"Origin": ORIGIN})
    assert cors(answer.headers) == {}


def test_a_page_of_an_origin_that_is_allowed_is_let_in(client, open_to):
    open_to("https://b.example", ORIGIN)
    answer = client.get("/courses", headers={"Origin": ORIGIN})
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    for name in ("ETag", "Link", "Location", "X-Total-Count"):
        assert name in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Vary"] == "Accept, Origin"


@pytest.mark.parametrize("origin", ["https://a.example.evil", "http://a.example", "null", ""])
def test_a_page_of_another_origin_is_not(client, open_to, origin):
    open_to(ORIGIN)
    answer = client.get("/courses/CSE115", headers={"Origin": origin})
    assert (cors(answer.headers), answer.headers["Vary"]) == ({}, "Accept, Origin")


def test_a_star_lets_every_page_in(client, open_to):
    open_to("*")
    assert client.get("/courses", headers={"Origin": ORIGIN}).headers["Access-Control-Allow-Origin"] == ORIGIN
    assert cors(client.get("/courses").headers) == {}


def test_a_preflight_needs_no_token_and_says_what_may_be_sent(stranger, open_to):
    open_to(ORIGIN)
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    answer = stranger.options("/courses/CSE115", headers=asked, status=204)
    assert "PUT" in answer.headers["Access-Control-Allow-Methods"]
    for name in ("Authorization", "Content-Type", "If-Match"):
        assert name in answer.headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(("path", "status"), [("/courses", 401), ("/nothing", 404), ("/login", 405), ("/health", 500)])
def test_a_page_can_read_the_errors_too(stranger, open_to, monkeypatch, path, status):
    open_to(ORIGIN)
    monkeypatch.setattr(models, "check_health", lambda: 1 / 0)
    answer = stranger.get(path, headers={"Origin": ORIGIN}, status=status, expect_errors=True)
    assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_the_setting_lists_the_origins(start):
    import http.client

    api = start(CORS_ORIGINS=f"https://B.example, {ORIGIN}")
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://b.example", "https://b.example"), ("https://c.example", None)):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.request("OPTIONS", "/courses", headers={"Origin": origin, "Access-Control-Request-Method": "GET"})
        answer = connection.getresponse()
        connection.close()
        assert (answer.status, answer.getheader("Access-Control-Allow-Origin")) == (204, allowed)
