"""Tokens: who gets one, who is let in by it, and who is turned away with which challenge (RFC 6750)."""

import base64
import hmac
import http.client
import json
import time

import jwt
import pytest
from description import check_error
from test_contract_inherited import CSE115, get

import course_api

PROTECTED = [
    (route.method, route.rule.replace("<code>", "CSE115"))
    for route in course_api.app.routes
    if not route.config.get("public")
]
LOGIN = {"username": "faisal", "password": "faisal"}
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
    for accept in ("", "*/*", "text/plain"):
        response = stranger.post("/login", f"grant_type=password&{LOGIN_FORM}", headers={"Accept": accept}, status=200)
        assert list(response.json) == ["access_token", "token_type", "expires_in"]
    assert stranger.post("/login", LOGIN_FORM, status=200).content_type == "text/plain"


def test_json_sent_as_a_form_is_refused_with_the_header_to_send(stranger):
    """curl -d sends a form unless the header says otherwise."""
    response = stranger.post("/login", f"\n {json.dumps(LOGIN)}", status=415)
    check_error(response, "this is JSON, not a form; send the header Content-Type: application/json")


def test_what_is_no_form_is_refused(stranger):
    for body in (b"username=\xff&password=a", b"username=%FF&password=a", b"a=b&" * 30):
        check_error(stranger.post("/login", body, status=400), "the body is not a form in UTF-8")


def test_login_asks_for_both_name_and_password(stranger):
    for login in ({}, {"username": "faisal"}, {"password": "faisal"}):
        check_error(stranger.post_json("/login", login, status=400), "username and password must be provided")
        form = {"grant_type": "password"} | login
        check_error(stranger.post("/login", form, status=400), "username and password must be provided")


def test_a_field_of_a_login_against_its_rule_is_refused(stranger):
    rule = "username must be 1 to 80 characters, with no control characters"
    check_error(stranger.post_json("/login", LOGIN | {"username": "a" * 81}, status=400), rule)
    check_error(stranger.post_json("/login", LOGIN | {"password": 5}, status=400), "password must be a string")


# -- Being let in ------------------------------------------------------------------------------------------------------


def test_only_login_health_and_the_docs_are_public():
    public = {route.rule for route in course_api.app.routes if route.config.get("public")}
    files = {"/openapi.yaml", "/docs", "/docs/swagger_bundle.js", "/docs/swagger_style.css"}
    assert public == {"/login", "/health", "/"} | files


@pytest.mark.parametrize(("method", "path"), PROTECTED)
def test_every_protected_route_turns_strangers_away(stranger, client, method, path):
    response = stranger.request(path, method=method, status=401)
    check_error(response, "Invalid token", reason="send a token as ?token= or in the Authorization header")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    response = stranger.request(f"{path}?token=bad", method=method, status=401)
    check_error(response, "Invalid token", reason="the token is malformed")
    assert get(client, "CSE115") == CSE115
    good = course_api.make_token("faisal")
    response = stranger.request(f"{path}?token={good}", method=method, status="*")
    assert response.status_int in (200, 204, 415)  # 415: let in, and asked for a body


def test_the_scheme_may_have_any_case(stranger):
    for scheme in ("Bearer", "bearer", "BEARER"):
        stranger.get("/courses", headers={"Authorization": f"{scheme} {course_api.make_token('faisal')}"}, status=200)


def test_another_scheme_and_a_blank_parameter_are_no_token(stranger):
    response = stranger.get("/courses?token=", headers={"Authorization": "Basic ZmFpc2FsOmZhaXNhbA=="}, status=401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_two_tokens_are_refused_even_if_both_are_good(stranger):
    good = course_api.make_token("faisal")
    for query, header in ((good, good), (good, "bad"), ("bad", good), (f"{good}&token={good}", "")):
        headers = {"Authorization": f"Bearer {header}"} if header else {}
        response = stranger.get(f"/courses?token={query}", headers=headers, status=400)
        check_error(response, "send one token, either as ?token= or in the Authorization header")
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_request"'


def test_the_server_takes_one_authorization_header_of_a_sane_length(start, run):
    run("seed.py")
    api = start()
    good = f"Bearer {api.log_in()}"
    for values, statuses in (([good], [200]), ([good, good], [400, 401]), ([good, "Bearer bad"], [400, 401])):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.putrequest("GET", "/courses")
        for value in values:
            connection.putheader("Authorization", value)
        connection.endheaders()
        assert connection.getresponse().status in statuses
        connection.close()
    assert api.request("/courses", Authorization="Bearer " + "a." * 50_000)[0] == 431


# -- Forgeries ---------------------------------------------------------------------------------------------------------

HEADER = b'{"alg":"HS256","typ":"JWT"}'


def encode(part):
    return base64.urlsafe_b64encode(part).rstrip(b"=")


def forge(header=HEADER, payload=None, key=None, digest="sha256"):
    """Return a token of any bytes, signed with our key if no other is given: even that must not make it good."""
    key = course_api.signing_key() if key is None else key
    message = encode(header) + b"." + encode(json.dumps(claims()).encode() if payload is None else payload)
    return (message + b"." + encode(hmac.new(key, message, digest).digest())).decode()


def unsigned(header):
    return forge(header).rpartition(".")[0] + "."


def payload(exp, more=""):
    return f'{{"sub": "faisal", "iat": 1, "exp": {exp}{more}}}'.encode()


def claims(**changes):
    """Return good claims, less those that are given as None."""
    now = int(time.time())
    good = {"sub": "faisal", "iat": now, "exp": now + 200} | changes
    return {name: value for name, value in good.items() if value is not None}


def sign(**changes):
    return jwt.encode(claims(**changes), course_api.signing_key(), algorithm="HS256")


FORGED = {
    "alg none, unsigned": lambda: unsigned(b'{"alg":"none"}'),
    "alg nOnE, unsigned": lambda: unsigned(b'{"alg":"nOnE"}'),
    "alg none, signed with our key": lambda: forge(b'{"alg":"none"}'),
    "alg missing": lambda: forge(b'{"typ":"JWT"}'),
    "alg as a list": lambda: forge(b'{"alg":["HS256"]}'),
    "alg in small letters": lambda: forge(b'{"alg":"hs256"}'),
    "HS512 with our key": lambda: forge(b'{"alg":"HS512"}', digest="sha512"),
    "RS256 signed with our key": lambda: forge(b'{"alg":"RS256"}'),
    "HS256 signed with a public key": lambda: forge(key=b"-----BEGIN PUBLIC KEY-----\nMFww"),
    "empty key": lambda: forge(key=b""),
    "the tutorial's key": lambda: forge(key=b"your.name"),
    "a key of the token's own": lambda: forge(b'{"alg":"HS256","jwk":{"kty":"oct","k":"YQ"}}', key=b"a"),
    "a key from elsewhere": lambda: forge(b'{"alg":"HS256","jku":"http://192.0.2.1/","kid":"/dev/null"}', key=b""),
    "crit": lambda: forge(b'{"alg":"HS256","crit":["exp"]}'),
    "b64 false": lambda: forge(b'{"alg":"HS256","b64":false,"crit":["b64"]}'),
    "header that is a list": lambda: forge(b'["HS256"]'),
    "header nested 5,000 deep": lambda: forge(b"[" * 5000),
    "alg twice": lambda: forge(b'{"alg":"HS256","alg":"none"}'),
    "payload that is no JSON": lambda: forge(payload=b"faisal"),
    "exp as a string": lambda: forge(payload=payload('"9999999999"')),
    "exp as 1e400": lambda: forge(payload=payload("1e400")),
    "exp not a number": lambda: forge(payload=payload("NaN")),
    "exp of 5,000 digits": lambda: forge(payload=payload("9" * 5000)),
    "exp null": lambda: forge(payload=payload("null")),
    "exp a list": lambda: forge(payload=payload("[9999999999]")),
    "exp twice, the good one first": lambda: forge(payload=payload("9999999999", ', "exp": 1')),
    "exp missing": lambda: forge(payload=b'{"sub": "faisal", "iat": 1}'),
    "iat in the future": lambda: forge(payload=payload("9999999999", ', "iat": 9999999998')),
    "iat as a string": lambda: forge(payload=payload("9999999999", ', "iat": "1"')),
    "nbf in the future": lambda: forge(payload=payload("9999999999", ', "nbf": 9999999998')),
    "sub missing": lambda: forge(payload=b'{"iat": 1, "exp": 9999999999}'),
    "sub a number": lambda: forge(payload=payload("9999999999", ', "sub": 1')),
    "for another audience": lambda: forge(payload=payload("9999999999", ', "aud": "payroll"')),
    "no signature": lambda: forge().rpartition(".")[0] + ".",
    "two parts": lambda: forge().rpartition(".")[0],
    "five parts": lambda: forge() + ".a.b",
    "padding": lambda: forge() + "=",
    "the other base64 alphabet": lambda: forge(payload=payload("9999999999", ', "x": "???>>>"')).replace("_", "/"),
    "a character of no alphabet": lambda: forge()[:9] + "!" + forge()[9:],
    "a blank inside": lambda: forge()[:9] + " " + forge()[9:],
    "the header of one, the rest of another": lambda: (
        forge(b'{"alg": "HS256"}').split(".")[0] + forge()[len(encode(HEADER)) :]
    ),
    "a changed payload": lambda: ".".join(
        [forge().split(".")[0], encode(payload("9999999999")).decode(), forge().split(".")[2]]
    ),
    "one of 20 KB": lambda: forge(key=b"k", payload=b'"' + b"x" * 15_000 + b'"'),
}


@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_a_forged_token_lets_nobody_in(stranger, make):
    stranger.get("/courses", headers={"Authorization": f"Bearer {make()}"}, status=401)
    stranger.get("/courses", {"token": make()}, status=401)


def test_the_forger_can_make_a_good_token(stranger):
    """Or else the test above cannot fail."""
    stranger.get("/courses", headers={"Authorization": f"Bearer {forge(payload=payload('9999999999'))}"}, status=200)


def test_the_reason_says_what_is_wrong_with_a_token(stranger):
    now = int(time.time())
    for token, reason in (
        (sign(exp=now - 1), "the token has expired; log in again"),
        (sign(exp=now), "the token has expired; log in again"),
        (sign(nbf=10**10), "the token is not valid yet"),
        (sign(iat=now + 60), "the token is not valid yet"),
        (sign(sub=None), "the token lacks sub, iat or exp"),
        (forge(b'{"alg":"HS512"}', digest="sha512"), "the token is not signed with HS256"),
        (forge(key=b"your.name"), "the token is not signed with this API's key"),
        (sign(sub=5), "the token is malformed"),
        ("abc", "the token is malformed"),
    ):
        refuses(stranger, reason, Authorization=f"Bearer {token}")
        refuses(stranger, reason, f"/courses?token={token}")


def test_the_reason_never_quotes_the_token(stranger):
    token = jwt.encode(claims(), course_api.signing_key(), headers={"crit": ['"\r\nSet-Cookie: a=b']})
    refuses(stranger, "the token is malformed", f"/courses?token={token}")


# -- Cached tokens -----------------------------------------------------------------------------------------------------


def test_a_cached_token_is_refused_the_second_it_expires(stranger, monkeypatch):
    expires = int(time.time()) + 100
    path = f"/courses?token={sign(exp=expires)}"
    stranger.get(path, status=200)
    hits = course_api.verify_token.cache_info().hits
    monkeypatch.setattr(course_api.time, "time", lambda: expires - 0.001)
    stranger.get(path, status=200)
    monkeypatch.setattr(course_api.time, "time", lambda: expires)
    refuses(stranger, "the token has expired; log in again", path)
    assert course_api.verify_token.cache_info().hits == hits + 2


def test_a_token_from_a_machine_whose_clock_is_4_seconds_ahead_is_good(stranger):
    stranger.get(f"/courses?token={sign(iat=int(time.time()) + 4)}", status=200)


def test_the_cache_has_a_limit_and_no_bad_tokens(stranger):
    course_api.verify_token.cache_clear()
    stranger.get("/courses?token=bad", status=401)
    assert course_api.verify_token.cache_info().currsize == 0
    for number in range(course_api.verify_token.cache_info().maxsize + 10):
        course_api.verify_token(sign(sub=str(number)), course_api.signing_key())
    assert course_api.verify_token.cache_info().currsize == course_api.verify_token.cache_info().maxsize


# -- What every response says ------------------------------------------------------------------------------------------


def test_no_response_is_for_shared_caches_or_guesses_of_its_type(client):
    paths = ["GET /courses", "GET /courses/CSE115", "DELETE /courses/CSE115", "OPTIONS /courses", "GET /docs", "GET /"]
    for path in paths:
        headers = client.request(path.split()[1], method=path.split()[0]).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "private, no-cache"
        assert "Server" not in headers
