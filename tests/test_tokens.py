"""Tokens: who gets one, who is let in by it, and who is turned away with which challenge (RFC 6750)."""

import base64
import hmac
import json
import time

import pytest
from catalogue import CSE115, LOGIN, get, make_token
from description import check_error

import course_api

PROTECTED = [
    (route.method, route.rule.replace("<code>", "CSE115"))
    for route in course_api.app.routes
    if not route.config.get("public")
]
LOGIN_FORM = "username=faisal&password=faisal"


def refuses(client, reason, path="/courses", **headers):
    """Check that a list is refused because of the token, with the reason in the body and in the header."""
    response = client.get(path, headers=headers, status=401)
    check_error(response, "Invalid token", reason=reason)
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    assert response.headers["WWW-Authenticate"] == challenge


# -- Getting one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["", "*/*", "application/json, text/plain, */*", "application/json;q=0.5, text/*"])
def test_login_returns_the_bare_token_to_curl_fetch_axios_and_angular(stranger, accept):
    response = stranger.post_json("/login", LOGIN, headers={"Accept": accept}, status=200)
    assert (response.content_type, response.headers["Cache-Control"]) == ("text/plain", "no-store")
    stranger.get(f"/courses?token={response.text}", status=200)


@pytest.mark.parametrize("accept", ["application/json, */*;q=0.5", "Application/JSON;charset=utf-8", "application/*"])
def test_login_returns_json_to_httpie_and_whoever_prefers_it(stranger, accept):
    response = stranger.post_json("/login", LOGIN, headers={"Accept": accept}, status=200)
    assert (response.content_type, response.headers["Cache-Control"]) == ("application/json", "no-store")
    token = response.json["access_token"]
    assert response.json == {"access_token": token, "token_type": "Bearer", "expires_in": 200}
    stranger.get(f"/courses?token={token}", status=200)


def test_a_form_with_grant_type_always_gets_json(stranger):
    """RFC 6749 §4.3.2 and §5.1"""
    form = f"grant_type=password&{LOGIN_FORM}"
    response = stranger.post("/login", form, headers={"Accept": "text/plain"}, status=200)
    assert list(response.json) == ["access_token", "token_type", "expires_in"]
    assert stranger.post("/login", LOGIN_FORM, status=200).content_type == "text/plain"


@pytest.mark.parametrize("accept", ["", "text/plain", "application/json, text/plain, */*"])
def test_token_returns_json_whatever_is_preferred(stranger, accept):
    for send, login in ((stranger.post_json, LOGIN), (stranger.post, LOGIN)):
        response = send("/token", login, headers={"Accept": accept}, status=200)
        assert (response.content_type, response.headers["Cache-Control"]) == ("application/json", "no-store")
        token = response.json["access_token"]
        assert response.json == {"access_token": token, "token_type": "Bearer", "expires_in": 200}
        stranger.get(f"/courses?token={token}", status=200)


def test_token_and_login_refuse_alike_and_count_failures_together(stranger):
    for path in ("/token", "/login"):
        check_error(stranger.post_json(path, {}, status=400), "username and password must be provided")
        for _ in range(2):
            wrong = stranger.post_json(path, LOGIN | {"password": "wrong"}, status=400)
            check_error(wrong, "username or password is not correct")
    stranger.post_json("/token", LOGIN | {"password": "wrong"}, status=400)
    for path in ("/token", "/login"):
        stranger.post_json(path, LOGIN, status=429)


def test_json_sent_as_a_form_is_refused_with_the_header_to_send(stranger):
    """curl -d sends a form unless the header says otherwise."""
    response = stranger.post("/login", f"\n {json.dumps(LOGIN)}", status=415)
    check_error(response, "this is JSON, not a form; send the header Content-Type: application/json")


@pytest.mark.parametrize("body", [b"username=\xff&password=a", b"username=%FF&password=a", b"a=b&" * 30])
def test_what_is_no_form_is_refused(stranger, body):
    check_error(stranger.post("/login", body, status=400), "the body is not a form in UTF-8")


@pytest.mark.parametrize(
    ("login", "error"),
    [
        ({}, "username and password must be provided"),
        ({"username": "faisal"}, "username and password must be provided"),
        ({"password": "faisal"}, "username and password must be provided"),
        (LOGIN | {"username": ""}, "username must be 1 to 80 characters, with no control characters"),
        (LOGIN | {"password": "a" * 1025}, "password must be 1 to 1024 characters, with no surrogates"),
    ],
)
def test_a_login_with_a_missing_or_bad_field_is_refused(stranger, login, error):
    check_error(stranger.post_json("/login", login, status=400), error)
    check_error(stranger.post("/login", {"grant_type": "password"} | login, status=400), error)


# -- Being let in ------------------------------------------------------------------------------------------------------


def test_only_login_health_and_the_docs_are_public():
    public = {route.rule for route in course_api.app.routes if route.config.get("public")}
    files = {"/docs/docs.css", "/docs/docs.js", "/docs/swagger_bundle.js", "/docs/swagger_style.css"}
    assert public == {"/login", "/token", "/health", "/", "/docs", "/openapi.yaml"} | files


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_every_protected_route_turns_strangers_away(stranger, client, method, path):
    response = stranger.request(path, method=method, status=401)
    check_error(response, "Invalid token", reason="send a token as ?token= or in the Authorization header")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    response = stranger.request(f"{path}?token=bad", method=method, status=401)
    check_error(response, "Invalid token", reason="the token is malformed")
    assert get(client, "CSE115") == CSE115
    good = make_token("faisal")
    stranger.request(f"{path}?token={good}", method=method, status=[200, 204, 415])  # 415: is asked for a body


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_have_any_case(stranger, scheme):
    stranger.get("/courses", headers={"Authorization": f"{scheme} {make_token('faisal')}"}, status=200)


@pytest.mark.parametrize("form", ["{}", "JWT {}", "Token {}", "Basic ZmFpc2FsOmZhaXNhbA==", "Bearer: {}", ""])
def test_another_scheme_and_a_bare_token_are_answered_with_the_header_to_send(stranger, form):
    authorization = form.format(make_token("faisal"))
    for path in ("/courses", "/courses?token="):
        response = stranger.get(path, headers={"Authorization": authorization}, status=401)
        reason = "send the header as Authorization: Bearer TOKEN, with a token from POST /token"
        check_error(response, "Invalid token", reason=reason)
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_a_blank_parameter_is_no_token(stranger):
    response = stranger.get("/courses?token=", status=401)
    check_error(response, "Invalid token", reason="send a token as ?token= or in the Authorization header")


def test_two_tokens_are_refused_even_if_both_are_good(stranger):
    good = make_token("faisal")
    for query, scheme in ((good, "Bearer"), ("bad", "Bearer"), (f"{good}&token={good}", "Basic")):
        headers = {"Authorization": f"{scheme} {good}"}
        response = stranger.get(f"/courses?token={query}", headers=headers, status=400)
        check_error(response, "send one token, either as ?token= or in the Authorization header")
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_request"'


# -- Forgeries ---------------------------------------------------------------------------------------------------------

HEADER = b'{"alg":"HS256","typ":"JWT"}'


def encode(part):
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def forge(header=HEADER, payload=None, key=None, digest="sha256"):
    """Return a token of any bytes, signed with our key if no other is given: even that must not make it good."""
    key = course_api.signing_key() if key is None else key
    message = encode(header) + b"." + encode(payload or claims())
    return (message + b"." + encode(hmac.new(key, message, digest).digest())).decode()


def claims(**changes):
    """Return good claims in JSON, less those that are given as None."""
    now = int(time.time())
    good = {"sub": "faisal", "iat": now, "exp": now + 200} | changes
    return json.dumps({name: value for name, value in good.items() if value is not None}).encode()


def odd_claims(exp=9999999999, more=""):
    """Return claims in which the expiry, and what follows it, are any JSON."""
    return f'{{"sub": "faisal", "iat": 1, "exp": {exp}{more}}}'.encode()


MALFORMED = "the token is malformed"
NOT_HS256 = "the token is not signed with HS256"
NOT_OURS = "the token is not signed with this API's key"
LACKS = "the token lacks sub, iat or exp"
EARLY = "the token is not valid yet"
EXPIRED = "the token has expired; log in again"
FORGED = {  # of each token: the reason to refuse it, and a function that makes it
    "alg none, unsigned": (MALFORMED, lambda: forge(b'{"alg":"none"}').rpartition(".")[0] + "."),
    "alg none, signed with our key": (NOT_HS256, lambda: forge(b'{"alg":"none"}')),
    "alg missing": (NOT_HS256, lambda: forge(b'{"typ":"JWT"}')),
    "alg as a list": (NOT_HS256, lambda: forge(b'{"alg":["HS256"]}')),
    "alg in small letters": (NOT_HS256, lambda: forge(b'{"alg":"hs256"}')),
    "alg twice": (NOT_HS256, lambda: forge(b'{"alg":"HS256","alg":"none"}')),
    "HS512 with our key": (NOT_HS256, lambda: forge(b'{"alg":"HS512"}', digest="sha512")),
    "empty key": (NOT_OURS, lambda: forge(key=b"")),
    "the tutorial's key": (NOT_OURS, lambda: forge(key=b"your.name")),
    "a key of the token's own": (NOT_OURS, lambda: forge(b'{"alg":"HS256","jwk":{"kty":"oct","k":"YQ"}}', key=b"a")),
    "no signature": (MALFORMED, lambda: forge().rpartition(".")[0] + "."),
    "another's signature": (NOT_OURS, lambda: forge().rpartition(".")[0] + forge(payload=odd_claims())[-44:]),
    "crit that would break a header": (MALFORMED, lambda: forge(rb'{"alg":"HS256","crit":["\"\r\nSet-Cookie: a=b"]}')),
    "header that is a list": (MALFORMED, lambda: forge(b'["HS256"]')),
    "header nested 5,000 deep": (MALFORMED, lambda: forge(b"[" * 5000)),
    "payload that is no JSON": (MALFORMED, lambda: forge(payload=b"faisal")),
    "two parts": (MALFORMED, lambda: forge().rpartition(".")[0]),
    "five parts": (MALFORMED, lambda: forge() + ".a.b"),
    "two headers, joined": (MALFORMED, lambda: f"{forge()}, Bearer {forge()}"),
    "padding": (MALFORMED, lambda: forge() + "="),
    "the other base64 alphabet": (MALFORMED, lambda: forge(HEADER[:-1] + b',"x":"???>>>"}').replace("_", "/")),
    "a blank inside": (MALFORMED, lambda: forge()[:9] + " " + forge()[9:]),
    "exp as a string": (MALFORMED, lambda: forge(payload=odd_claims('"9999999999"'))),
    "exp as 1e400": (MALFORMED, lambda: forge(payload=odd_claims("1e400"))),
    "exp not a number": (MALFORMED, lambda: forge(payload=odd_claims("NaN"))),
    "exp of 5,000 digits": (MALFORMED, lambda: forge(payload=odd_claims("9" * 5000))),
    "exp null": (LACKS, lambda: forge(payload=odd_claims("null"))),
    "exp a list": (MALFORMED, lambda: forge(payload=odd_claims("[9999999999]"))),
    "exp twice, the good one first": (EXPIRED, lambda: forge(payload=odd_claims(more=', "exp": 1'))),
    "exp a second ago": (EXPIRED, lambda: forge(payload=claims(exp=int(time.time()) - 1))),
    "exp missing": (LACKS, lambda: forge(payload=claims(exp=None))),
    "iat in the future": (EARLY, lambda: forge(payload=claims(iat=int(time.time()) + 60))),
    "iat as a string": (MALFORMED, lambda: forge(payload=claims(iat="1"))),
    "iat missing": (LACKS, lambda: forge(payload=claims(iat=None))),
    "nbf in the future": (EARLY, lambda: forge(payload=claims(nbf=10**10))),
    "sub missing": (LACKS, lambda: forge(payload=claims(sub=None))),
    "sub a number": (MALFORMED, lambda: forge(payload=claims(sub=1))),
    "stamp a number": (MALFORMED, lambda: forge(payload=claims(stamp=1))),
    "stamp null": (MALFORMED, lambda: forge(payload=odd_claims(more=', "stamp": null'))),
    "for another audience": (MALFORMED, lambda: forge(payload=claims(aud="payroll"))),
}


@pytest.mark.parametrize(("reason", "make"), FORGED.values(), ids=FORGED)
def test_a_forged_token_lets_nobody_in_and_the_reason_does_not_quote_it(stranger, reason, make):
    refuses(stranger, reason, Authorization=f"Bearer {make()}")
    refuses(stranger, reason, f"/courses?token={make()}")


def test_the_forger_can_make_a_good_token(stranger):
    """Or else the test above cannot fail. The token is of a machine whose clock is 4 seconds ahead."""
    stranger.get(f"/courses?token={forge(payload=claims(iat=int(time.time()) + 4))}", status=200)
    stranger.get(f"/courses?token={forge(payload=odd_claims())}", status=200)


# -- Cached tokens -----------------------------------------------------------------------------------------------------


def test_a_cached_token_is_refused_the_second_it_expires(stranger, monkeypatch):
    expires = int(time.time()) + 100
    path = f"/courses?token={forge(payload=claims(exp=expires))}"
    stranger.get(path, status=200)
    hits = course_api.verify_token.cache_info().hits
    monkeypatch.setattr(course_api.time, "time", lambda: expires - 0.001)
    stranger.get(path, status=200)
    monkeypatch.setattr(course_api.time, "time", lambda: expires)
    refuses(stranger, EXPIRED, path)
    assert course_api.verify_token.cache_info().hits == hits + 2


def test_the_cache_has_a_limit_and_no_bad_tokens(stranger):
    course_api.verify_token.cache_clear()
    stranger.get("/courses?token=bad", status=401)
    assert course_api.verify_token.cache_info().currsize == 0
    assert course_api.verify_token.cache_info().maxsize is not None


# -- What every response says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/courses"), ("DELETE", "/courses/CSE115"), ("OPTIONS", "/courses"), ("GET", "/docs"), ("GET", "/")],
)
def test_no_response_is_for_shared_caches_or_guesses_of_its_type(client, method, path):
    headers = client.request(path, method=method).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "private, no-cache"
    assert "Server" not in headers
