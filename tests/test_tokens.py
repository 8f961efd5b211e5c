"""Tokens: who is let in, who is turned away, and with which challenge (RFC 6750)."""

import base64
import hmac
import json
import time

import jwt
import pytest

import course_api
import models

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


@pytest.mark.parametrize(("ahead", "status"), [(4, 200), (60, 401)])
def test_a_token_of_a_machine_whose_clock_is_a_little_ahead_is_good(stranger, ahead, status):
    stranger.get(f"/courses?token={sign(claims(iat=int(time.time()) + ahead))}", status=status)


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


def payload(exp, more=""):
    return f'{{"sub": "faisal", "iat": 1, "exp": {exp}{more}}}'.encode()


FORGED = {
    "alg none, unsigned": lambda: unsigned("none"),
    "alg nOnE, unsigned": lambda: unsigned("nOnE"),
    "alg NONE, unsigned": lambda: unsigned("NONE"),
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


@pytest.mark.filterwarnings("ignore:The HMAC key is")
@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED.keys())
def test_a_forged_token_lets_nobody_in(stranger, make):
    for _ in range(2):  # the second time too
        stranger.get("/courses", headers={"Authorization": f"Bearer {make()}"}, status=401)
        stranger.get("/courses", {"token": make()}, status=401)


def test_the_forger_can_make_a_good_one(stranger):
    """Else the test above could not fail."""
    stranger.get("/courses", headers={"Authorization": f"Bearer {forge(payload=payload('9999999999'))}"}, status=200)


def test_a_token_of_100_kb_is_refused_by_the_server(start):
    assert start().request("/courses", Authorization="Bearer " + "a." * 50_000)[0] in (400, 431)


def test_two_authorization_headers_are_no_token(start, run):
    import http.client

    run("seed.py")
    api = start()
    token = api.log_in()
    for second in (f"Bearer {token}", "Bearer bad"):
        connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=20)
        connection.putrequest("GET", "/courses")
        connection.putheader("Authorization", f"Bearer {token}")
        connection.putheader("Authorization", second)
        connection.endheaders()
        assert connection.getresponse().status in (400, 401)
        connection.close()


def test_the_token_of_a_user_who_is_deleted_is_good_until_it_expires_and_there_is_no_other(stranger, monkeypatch):
    """Documented in SECURITY.md: a request asks no user table, so a token lives as long as it says."""
    models.User.create_user("leaver", "secret")
    login = {"username": "leaver", "password": "secret"}
    path = f"/courses?token={stranger.post_json('/login', login).text}"
    models.User.delete().where(models.User.username == "leaver").execute()
    stranger.post_json("/login", login, status=400)
    stranger.get(path, status=200)
    expires = time.time() + course_api.settings.TOKEN_SECONDS + 1
    monkeypatch.setattr(course_api.time, "time", lambda: expires)
    stranger.get(path, status=401)
    stranger.delete(path.replace("/courses", "/courses/CSE115"), status=401)


# -- What every answer says --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/courses", 200),
        ("GET", "/courses/CSE115", 200),
        ("DELETE", "/courses/CSE115", 204),
        ("GET", "/courses/unknown", 404),
        ("GET", "/nowhere", 404),
        ("PUT", "/courses", 405),
        ("OPTIONS", "/courses", 204),
        ("GET", "/docs", 200),
        ("GET", "/docs/swagger_style.css", 200),
        ("GET", "/", 302),
    ],
)
def test_every_answer_keeps_shared_caches_and_guesses_of_its_type_out(client, method, path, status):
    headers = client.request(path, method=method, status=status).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "private, no-cache"
    assert "Server" not in headers


def test_what_is_not_modified_says_so_too(client):
    known = client.get("/courses").headers["ETag"]
    headers = client.get("/courses", headers={"If-None-Match": known}, status=304).headers
    assert (headers["ETag"], headers["Cache-Control"]) == (known, "private, no-cache")


def test_an_error_says_so_too(stranger, monkeypatch):
    assert stranger.get("/courses", status=401).headers["Cache-Control"] == "private, no-cache"
    monkeypatch.setattr(models, "check_health", lambda: 1 / 0)
    headers = stranger.get("/health", status=500, expect_errors=True).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
