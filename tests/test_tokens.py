"""Tokens: who is let in, who is turned away, and with which challenge (RFC 6750)."""

import base64
import json
import time

import jwt
import pytest

import course_api

PROTECTED = [
    (route.method, route.rule.replace("<code>", "CSE115"))
    for route in course_api.app.routes
    if not route.config.get("public")
]


def claims(**changes):
    """Return good claims, less those that are given as None."""
    now = int(time.time())
    good = {"sub": "faisal", "iat": now, "exp": now + 200} | changes
    return {name: value for name, value in good.items() if value is not None}


def sign(claims, key=None, algorithm="HS256"):
    return jwt.encode(claims, key or course_api.signing_key(), algorithm=algorithm)


def unsigned(algorithm):
    header, payload = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": algorithm, "typ": "JWT"}, claims())
    )
    return f"{header}.{payload}."


BAD_TOKENS = {
    "empty": lambda: "",
    "garbled": lambda: "abc",
    "three dots": lambda: "...",
    "a cut one": lambda: sign(claims())[:-1],
    "an expired one": lambda: sign(claims(exp=int(time.time()) - 1)),
    "one that expires now": lambda: sign(claims(exp=int(time.time()))),
    "wrong key": lambda: sign(claims(), "another key that is long enough!"),
    "the tutorial's key": lambda: sign(claims(), "your.name".ljust(32)),
    "alg none": lambda: unsigned("none"),
    "alg None": lambda: unsigned("None"),
    "HS512": lambda: sign(claims(), "x" * 64 + course_api.signing_key().decode(), "HS512"),
    "HS512 with our key": lambda: sign(claims(), course_api.signing_key(), "HS512"),
    "no exp": lambda: sign(claims(exp=None)),
    "no sub": lambda: sign(claims(sub=None)),
    "no iat": lambda: sign(claims(iat=None)),
    "not UTF-8": lambda: "\xff\xfe",
}


@pytest.fixture(params=PROTECTED, ids=" ".join)
def protected(request):
    """Each route that asks for a token."""
    return request.param


def test_only_login_health_and_the_documents_are_public():
    public = {route.rule.partition("<")[0] for route in course_api.app.routes if route.config.get("public")}
    assert public == {"/login", "/health", "/", "/openapi.yaml", "/docs", "/docs/"}


def test_no_token_is_turned_away_without_an_error_code(stranger, protected):
    method, path = protected
    answer = stranger.request(path, method=method, status=401)
    assert answer.json == {"error": "Invalid token"}
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.filterwarnings("ignore:The HMAC key is")  # the forger's key
@pytest.mark.parametrize("make", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
@pytest.mark.parametrize("place", ["header", "query"])
def test_a_bad_token_is_turned_away_with_a_reason(stranger, protected, make, place):
    method, path = protected
    headers = {"Authorization": f"Bearer {make()}"} if place == "header" else {}
    path += "" if place == "header" else f"?token={make()}"
    answer = stranger.request(path, method=method, headers=headers, status=401)
    assert answer.json == {"error": "Invalid token"}
    assert answer.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token", error_description="the token')


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": 1}, "expired"),
        ({"sub": None}, "lacks sub"),
        ({"nbf": 10**10}, "not valid yet"),
        ({"sub": 5}, "malformed"),
    ],
)
def test_the_reason_says_what_is_wrong(stranger, changes, reason):
    answer = stranger.get(f"/courses?token={sign(claims(**changes))}", status=401)
    assert reason in answer.headers["WWW-Authenticate"]


def test_the_reason_never_quotes_the_token(stranger):
    token = jwt.encode(claims(), course_api.signing_key(), headers={"crit": ['"\r\nSet-Cookie: a=b']})
    answer = stranger.get(f"/courses?token={token}", status=401)
    assert "Cookie" not in str(answer.headers)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_have_any_case(stranger, scheme):
    stranger.get("/courses", headers={"Authorization": f"{scheme} {course_api.make_token('faisal')}"}, status=200)


def test_another_scheme_is_no_token(stranger):
    answer = stranger.get("/courses", headers={"Authorization": "Basic ZmFpc2FsOmZhaXNhbA=="}, status=401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_token_in_the_query_is_good_on_every_protected_route(stranger, protected):
    method, path = protected
    answer = stranger.request(f"{path}?token={course_api.make_token('faisal')}", method=method, expect_errors=True)
    assert answer.status_int in (200, 204, 415)  # 415: let in, and asked for a body


@pytest.mark.parametrize("bad", ["header", "query", None])
def test_two_tokens_at_once_are_refused_even_if_both_are_good(stranger, bad):
    good = course_api.make_token("faisal")
    headers = {"Authorization": f"Bearer {'bad' if bad == 'header' else good}"}
    answer = stranger.get(f"/courses?token={'bad' if bad == 'query' else good}", headers=headers, status=400)
    assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_request"'


def test_a_token_twice_in_the_query_is_refused(stranger):
    good = course_api.make_token("faisal")
    stranger.get(f"/courses?token={good}&token={good}", status=400)


def test_a_refused_write_writes_nothing(stranger, client):
    stranger.delete("/courses/CSE115", status=401)
    stranger.put_json("/courses/CSE115?token=bad", {"name": "a", "instructor": "b"}, status=401)
    assert client.get("/courses/CSE115").json["instructor"] == "John stuart"


def test_a_remembered_token_is_refused_the_second_it_expires(stranger, monkeypatch):
    expires = int(time.time()) + 100
    path = f"/courses?token={sign(claims(exp=expires))}"
    stranger.get(path, status=200)
    hits = course_api.verify_token.cache_info().hits
    monkeypatch.setattr(course_api.time, "time", lambda: expires - 0.001)
    stranger.get(path, status=200)
    monkeypatch.setattr(course_api.time, "time", lambda: expires)
    assert "expired" in stranger.get(path, status=401).headers["WWW-Authenticate"]
    assert course_api.verify_token.cache_info().hits == hits + 2


def test_a_changed_key_forgets_the_tokens_it_remembered(stranger, monkeypatch):
    path = f"/courses?token={sign(claims())}"
    stranger.get(path, status=200)
    monkeypatch.setattr(course_api, "signing_key", lambda: b"another key that is long enough!")
    stranger.get(path, status=401)


def test_no_more_tokens_are_remembered_than_there_is_room_for():
    course_api.verify_token.cache_clear()
    for number in range(course_api.verify_token.cache_info().maxsize + 10):
        course_api.verify_token(sign(claims(sub=str(number))), course_api.signing_key())
    assert course_api.verify_token.cache_info().currsize == course_api.verify_token.cache_info().maxsize


def test_a_bad_token_is_not_remembered(stranger):
    before = course_api.verify_token.cache_info().currsize
    stranger.get("/courses?token=bad", status=401)
    assert course_api.verify_token.cache_info().currsize == before
