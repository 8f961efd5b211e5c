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
import models

PROTECTED = [
    (route.method, route.rule.replace("<code>", "CSE115"))
    for route in course_api.app.routes
    if not route.config.get("public")
]
EVERY_PROTECTED_ROUTE = pytest.mark.parametrize(("method", "path"), PROTECTED)
LOGIN = {"username": "faisal", "password": "faisal"}
LOGIN_FORM = "username=faisal&password=faisal"


def refuses(client, reason, path="/courses", **headers):
    """Check that a list is refused because of the token, with the reason in the body and in the header."""
    response = client.get(path, headers=headers, status=401)
    check_error(response, "Invalid token", reason=reason)
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    assert response.headers["WWW-Authenticate"] == challenge


# -- Getting one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain"),
        ("*/*", "text/plain"),  # curl, fetch, requests
        ("application/json, text/plain, */*", "text/plain"),  # axios, Angular
        ("text/html, application/json;q=0.9, */*;q=0.8", "application/json"),
        ("application/json, */*;q=0.5", "application/json"),  # HTTPie
        ("application/json", "application/json"),
        ("Application/JSON;charset=utf-8", "application/json"),
        ("application/*", "application/json"),
        ("application/json;q=0.5, text/*", "text/plain"),
        ("text/plain;q=0.1, application/json;q=0.2", "application/json"),
        ("application/json;q=0, text/plain;q=0", "text/plain"),
        ("application/xml", "text/plain"),
    ],
)
def test_the_token_is_json_only_if_json_is_preferred(stranger, accept, content_type):
    response = stranger.post_json("/login", LOGIN, headers={"Accept": accept}, status=200)
    assert response.content_type == content_type
    assert response.headers["Cache-Control"] == "no-store"
    token = response.text
    if content_type == "application/json":
        token = response.json["access_token"]
        assert response.json == {"access_token": token, "token_type": "Bearer", "expires_in": 200}
    stranger.get(f"/courses?token={token}", status=200)


@pytest.mark.parametrize("accept", ["", "*/*", "text/plain"])
def test_an_oauth2_form_always_gets_json(stranger, accept):
    """RFC 6749 §4.3.2 and §5.1"""
    response = stranger.post("/login", f"grant_type=password&{LOGIN_FORM}", headers={"Accept": accept}, status=200)
    assert list(response.json) == ["access_token", "token_type", "expires_in"]


def test_a_form_without_grant_type_gets_the_bare_token(stranger):
    assert stranger.post("/login", LOGIN_FORM, status=200).content_type == "text/plain"


@pytest.mark.parametrize("body", [json.dumps(LOGIN), f"\n {json.dumps(LOGIN)}"])
def test_json_sent_as_a_form_is_refused_with_the_header_to_send(stranger, body):
    """curl -d sends a form unless the header says otherwise."""
    response = stranger.post("/login", body, status=415)
    check_error(response, "this is JSON, not a form; send the header Content-Type: application/json")


@pytest.mark.parametrize("body", [b"username=\xff&password=a", b"username=%FF&password=a", b"&" * 100 + b"a=b&" * 30])
def test_what_is_no_form_is_refused(stranger, body):
    check_error(stranger.post("/login", body, status=400), "the body is not a form in UTF-8")


@pytest.mark.parametrize("login", [{}, {"username": "faisal"}, {"password": "faisal"}])
def test_login_asks_for_both_name_and_password(stranger, login):
    check_error(stranger.post_json("/login", login, status=400), "username and password must be provided")
    form = {"grant_type": "password"} | login
    check_error(stranger.post("/login", form, status=400), "username and password must be provided")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"username": "a" * 81}, "username must be 1 to 80 characters, with no control characters"),
        ({"password": ["faisal"]}, "password must be a string"),
    ],
)
def test_a_field_of_a_login_against_its_rule_is_refused(stranger, change, error):
    check_error(stranger.post_json("/login", LOGIN | change, status=400), error)


def test_a_password_is_not_trimmed(stranger):
    models.User.create_user("spacy", " \n ")
    stranger.post_json("/login", {"username": "spacy", "password": " \n "}, status=200)
    stranger.post_json("/login", {"username": "spacy", "password": "\n"}, status=400)


# -- Being let in ------------------------------------------------------------------------------------------------------


def test_only_login_health_and_the_docs_are_public():
    public = {route.rule for route in course_api.app.routes if route.config.get("public")}
    files = {"/openapi.yaml", "/docs", "/docs/swagger_bundle.js", "/docs/swagger_style.css"}
    assert public == {"/login", "/health", "/"} | files


@EVERY_PROTECTED_ROUTE
def test_every_protected_route_turns_strangers_away(stranger, client, method, path):
    response = stranger.request(path, method=method, status=401)
    reason = "send a token as ?token= or in the Authorization header"
    check_error(response, "Invalid token", reason=reason)
    assert response.headers["WWW-Authenticate"] == "Bearer"
    response = stranger.request(f"{path}?token=bad", method=method, status=401)
    check_error(response, "Invalid token", reason="the token is malformed")
    assert get(client, "CSE115") == CSE115


@EVERY_PROTECTED_ROUTE
def test_every_protected_route_takes_a_token_in_the_query(stranger, method, path):
    response = stranger.request(f"{path}?token={course_api.make_token('faisal')}", method=method, status="*")
    assert response.status_int in (200, 204, 415)  # 415: let in, and asked for a body


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_may_have_any_case(stranger, scheme):
    stranger.get("/courses", headers={"Authorization": f"{scheme} {course_api.make_token('faisal')}"}, status=200)


@pytest.mark.parametrize("path", ["/courses", "/courses?token="])
def test_another_scheme_and_a_blank_parameter_are_no_token(stranger, path):
    response = stranger.get(path, headers={"Authorization": "Basic ZmFpc2FsOmZhaXNhbA=="}, status=401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("bad", ["header", "query", None])
def test_two_tokens_are_refused_even_if_both_are_good(stranger, bad):
    good = course_api.make_token("faisal")
    headers = {"Authorization": f"Bearer {'bad' if bad == 'header' else good}"}
    response = stranger.get(f"/courses?token={'bad' if bad == 'query' else good}", headers=headers, status=400)
    check_error(response, "send one token, either as ?token= or in the Authorization header")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_request"'


def test_a_token_twice_in_the_query_is_refused(stranger):
    good = course_api.make_token("faisal")
    stranger.get(f"/courses?token={good}&token={good}", status=400)


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
RSA_PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf
9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==
-----END PUBLIC KEY-----
"""


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
    "alg NONE, unsigned": lambda: unsigned(b'{"alg":"NONE"}'),
    "alg none, signed with our key": lambda: forge(b'{"alg":"none"}'),
    "alg missing": lambda: forge(b'{"typ":"JWT"}'),
    "alg empty": lambda: forge(b'{"alg":""}'),
    "alg null": lambda: forge(b'{"alg":null}'),
    "alg as a list": lambda: forge(b'{"alg":["HS256"]}'),
    "alg in small letters": lambda: forge(b'{"alg":"hs256"}'),
    "HS384 with our key": lambda: forge(b'{"alg":"HS384"}', digest="sha384"),
    "HS512 with our key": lambda: forge(b'{"alg":"HS512"}', digest="sha512"),
    "RS256 signed with our key": lambda: forge(b'{"alg":"RS256"}'),
    "HS256 signed with a public key": lambda: forge(key=RSA_PUBLIC_KEY.encode()),
    "ES256 signed with our key": lambda: forge(b'{"alg":"ES256"}'),
    "empty key": lambda: forge(key=b""),
    "the tutorial's key": lambda: forge(key=b"your.name"),
    "a key of the token's own": lambda: forge(b'{"alg":"HS256","jwk":{"kty":"oct","k":"YQ"}}', key=b"a"),
    "a key from elsewhere": lambda: forge(b'{"alg":"HS256","jku":"http://192.0.2.1/","kid":"/dev/null"}', key=b""),
    "crit": lambda: forge(b'{"alg":"HS256","crit":["exp"]}'),
    "b64 false": lambda: forge(b'{"alg":"HS256","b64":false,"crit":["b64"]}'),
    "header that is a list": lambda: forge(b'["HS256"]'),
    "header that is not UTF-8": lambda: forge(b"\xff\xfe"),
    "header nested 5,000 deep": lambda: forge(b"[" * 5000),
    "alg twice": lambda: forge(b'{"alg":"HS256","alg":"none"}'),
    "payload that is a list": lambda: forge(payload=b"[]"),
    "payload nested 5,000 deep": lambda: forge(payload=b"[" * 5000),
    "payload that is no JSON": lambda: forge(payload=b"faisal"),
    "exp as a string": lambda: forge(payload=payload('"9999999999"')),
    "exp as 1e400": lambda: forge(payload=payload("1e400")),
    "exp infinite": lambda: forge(payload=payload("Infinity")),
    "exp not a number": lambda: forge(payload=payload("NaN")),
    "exp of 5,000 digits": lambda: forge(payload=payload("9" * 5000)),
    "exp null": lambda: forge(payload=payload("null")),
    "exp true": lambda: forge(payload=payload("true")),
    "exp a list": lambda: forge(payload=payload("[9999999999]")),
    "exp negative": lambda: forge(payload=payload("-9999999999")),
    "exp twice, the good one first": lambda: forge(payload=payload("9999999999", ', "exp": 1')),
    "exp missing": lambda: forge(payload=b'{"sub": "faisal", "iat": 1}'),
    "iat in the future": lambda: forge(payload=payload("9999999999", ', "iat": 9999999998')),
    "iat as a string": lambda: forge(payload=payload("9999999999", ', "iat": "1"')),
    "nbf in the future": lambda: forge(payload=payload("9999999999", ', "nbf": 9999999998')),
    "nbf infinite": lambda: forge(payload=payload("9999999999", ', "nbf": 1e400')),
    "sub missing": lambda: forge(payload=b'{"iat": 1, "exp": 9999999999}'),
    "sub a number": lambda: forge(payload=payload("9999999999", ', "sub": 1')),
    "sub a list": lambda: forge(payload=payload("9999999999", ', "sub": ["faisal"]')),
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


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: sign(exp=int(time.time()) - 1), "the token has expired; log in again"),
        (lambda: sign(exp=int(time.time())), "the token has expired; log in again"),
        (lambda: sign(nbf=10**10), "the token is not valid yet"),
        (lambda: sign(iat=int(time.time()) + 60), "the token is not valid yet"),
        (lambda: sign(sub=None), "the token lacks sub, iat or exp"),
        (lambda: forge(b'{"alg":"HS512"}', digest="sha512"), "the token is not signed with HS256"),
        (lambda: forge(key=b"your.name"), "the token is not signed with this API's key"),
        (lambda: sign(sub=5), "the token is malformed"),
        (lambda: sign()[:-1], "the token is not signed with this API's key"),
    ],
)
def test_the_reason_says_what_is_wrong_with_a_token(stranger, make, reason):
    refuses(stranger, reason, Authorization=f"Bearer {make()}")
    refuses(stranger, reason, f"/courses?token={make()}")


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


def test_a_changed_key_invalidates_cached_tokens(stranger, monkeypatch):
    path = f"/courses?token={sign()}"
    stranger.get(path, status=200)
    monkeypatch.setattr(course_api, "signing_key", lambda: b"another key that is long enough!")
    refuses(stranger, "the token is not signed with this API's key", path)


def test_the_cache_has_a_limit_and_no_bad_tokens(stranger):
    course_api.verify_token.cache_clear()
    stranger.get("/courses?token=bad", status=401)
    assert course_api.verify_token.cache_info().currsize == 0
    for number in range(course_api.verify_token.cache_info().maxsize + 10):
        course_api.verify_token(sign(sub=str(number)), course_api.signing_key())
    assert course_api.verify_token.cache_info().currsize == course_api.verify_token.cache_info().maxsize


# -- What every response says ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/courses", 200),
        ("GET", "/courses/CSE115", 200),
        ("DELETE", "/courses/CSE115", 204),
        ("OPTIONS", "/courses", 204),
        ("GET", "/docs/swagger_style.css", 200),
        ("GET", "/", 302),
    ],
)
def test_no_response_is_for_shared_caches_or_guesses_of_its_type(client, method, path, status):
    headers = client.request(path, method=method, status=status).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "private, no-cache"
    assert "Server" not in headers
