"""The course API: a catalogue of courses over HTTP, behind a login.

    python seed.py          # the dummy data, once
    python course_api.py    # serves on http://127.0.0.1:5000 until Ctrl-C or SIGTERM

Any WSGI server serves it too, as `course_api:app`.

Settings are environment variables, read once at start; a bad value stops the start:

    HOST           the address to listen on, 127.0.0.1
    PORT           the port to listen on, 5000; 0 takes a free one
    DATABASE_URL   the database, sqlite:///courses.db; sqlite:///:memory: keeps nothing on disk
    SECRET_KEY     signs the tokens, 32 bytes or more; unset, a random key is made once and kept in the database
    TOKEN_SECONDS  how long a token is good, in seconds, 200
    LOGIN_LIMIT    wrong passwords for one name from one address, ten times as many for all names, 5/5minutes
    LIMIT_STORAGE  where those are counted, memory://; redis://host:6379 for several processes
    TRUSTED_PROXY  the address of the proxy whose X-Forwarded-For is believed, or * for any; none
    CORS_ORIGINS   the web pages that may use the API, such as https://a.example, https://b.example; * is all; none
    THREADS        how many requests are worked on at once, beside up to 16 logins, 4
    LOG_LEVEL      DEBUG, INFO, WARNING or ERROR; INFO writes a line per request on standard output

Every error is JSON of one shape, whatever went wrong: {"error": "a sentence that says what to mend"}
"""

import argparse
import array
import collections
import contextlib
import functools
import hashlib
import importlib.util
import ipaddress
import logging
import math
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from typing import Annotated, Literal
from urllib.parse import parse_qsl, quote, urlencode

import bottle
import jwt
import limits
import msgspec
import peewee
from bottle import HTTPError, HTTPResponse, request, response, static_file
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.proxy_headers import proxy_headers_middleware
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import BadRequest

import models
from models import Code, Course, Instructor, Name, Password, Text, User, Username

# -- Settings ----------------------------------------------------------------------------------------------------------


class Settings(msgspec.Struct):
    HOST: str = "127.0.0.1"
    PORT: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 5000
    SECRET_KEY: str = ""
    TOKEN_SECONDS: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 200
    LOGIN_LIMIT: str = "5/5minutes"
    LIMIT_STORAGE: str = "memory://"
    TRUSTED_PROXY: str = ""
    CORS_ORIGINS: str = ""
    THREADS: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def explain(error):
    """Return what msgspec found wrong, with the field's name, which it puts last, in front of what does not have it."""
    message, _, field = str(error).partition(" - at `$.")
    field = field.rstrip("`")
    return message if field in message else f"{field}: {message}"


try:
    settings = msgspec.convert({name: value for name, value in os.environ.items() if value}, Settings, strict=False)
except msgspec.ValidationError as error:
    sys.exit(f"{explain(error)}; see python course_api.py --help")
if settings.SECRET_KEY and len(os.fsencode(settings.SECRET_KEY)) < 32:  # RFC 7518 §3.2: HS256's own length
    sys.exit("SECRET_KEY is shorter than 32 bytes; make one with: openssl rand -hex 32")
try:
    NAME_LIMIT = limits.parse(settings.LOGIN_LIMIT)
    ADDRESS_LIMIT = type(NAME_LIMIT)(10 * NAME_LIMIT.amount, NAME_LIMIT.multiples)
    seconds = {"socket_timeout": models.SERVER_SECONDS, "socket_connect_timeout": models.SERVER_SECONDS}
    storage = limits.storage.storage_from_string(settings.LIMIT_STORAGE, wrap_exceptions=True, **seconds)
    throttle = limits.strategies.MovingWindowRateLimiter(storage)
except ValueError:
    sys.exit(f"LOGIN_LIMIT: {settings.LOGIN_LIMIT} is not like 5/5minutes")
except (limits.errors.ConfigurationError, NotImplementedError):
    sys.exit("LIMIT_STORAGE is not like memory:// or redis://host:6379, or requirements-servers.txt is not installed")
if not re.fullmatch(r"[\da-fA-F.:]*|\*", settings.TRUSTED_PROXY):
    sys.exit(f"TRUSTED_PROXY: {settings.TRUSTED_PROXY} is not an address, such as 127.0.0.1, nor *")
ORIGINS = settings.CORS_ORIGINS.lower().replace(",", " ").split()
for origin in ORIGINS:
    if not re.fullmatch(r"\*|[a-z][a-z0-9+.-]*://[^/]+", origin):
        sys.exit(f"CORS_ORIGINS: {origin} is not like https://example.com")

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

log = logging.getLogger("course_api")
bottle.Response.default_content_type = "application/json"
app = bottle.Bottle()
app.uninstall(True)  # Bottle's own plugins, for dicts and templates: each route returns its JSON as text
if settings.TRUSTED_PROXY:
    app.wsgi = proxy_headers_middleware(app.wsgi, settings.TRUSTED_PROXY, 1, {"x-forwarded-for"}, logger=log)

# -- Errors ------------------------------------------------------------------------------------------------------------

UNKNOWN_CODE = "Course code is not found in the courses"
CHANGED = "the course has changed since; GET it again, and send its new ETag in If-Match"


def answer_error(error):
    """Answer any error, Bottle's own too, in the one shape; headers that came with it stay."""
    if error.status_code == 405:
        allowed = {"OPTIONS", *error.headers["Allow"].split(",")}
        response.set_header("Allow", ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set()))))
        if request.method == "OPTIONS":
            response.status = 204
            return b""
    return msgspec.json.encode(error.body if isinstance(error.body, dict) else {"error": error.body})


app.default_error_handler = answer_error


@app.install
def answer_fault(callback):
    """Answer 503 where the database is out of reach, locked or full (RFC 9110 §15.6.4), and 500 for any other fault.

    The connection is closed then: the next request opens a new one, and finds the database that is back.
    """

    def guarded(**arguments):
        try:
            return callback(**arguments)
        except HTTPResponse:
            raise
        except (peewee.DatabaseError, peewee.InterfaceError, limits.errors.StorageError) as error:
            log.error("the database does not answer: %s", getattr(error, "storage_error", error))
            models.database.close()
            raise HTTPError(503, "the database does not answer, try again soon", retry_after="1") from None
        except Exception:
            log.exception("a fault of the API itself")
            raise HTTPError(500, "Internal Server Error") from None

    return guarded


HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # an address may have a token in it
    "Cache-Control": "private, no-cache",  # for the client alone, which asks again with its ETag (RFC 9111 §5.2.2)
}


@app.hook("after_request")
def add_headers():
    """Add the HEADERS to an answer that does not have its own."""
    headers = response.headers.dict  # straight there: set_header costs four times as much (measured)
    for name, value in HEADERS.items():
        if name not in headers:
            headers[name] = [value]


EXPOSED = "ETag, Link, Location, Retry-After, WWW-Authenticate, X-Total-Count"


def allow_origin():
    """Let the pages of ORIGINS use the API, in every answer (the Fetch standard, §3.2: CORS)."""
    response.set_header("Vary", "Accept, Origin")
    origin = request.environ.get("HTTP_ORIGIN", "")
    if origin in ORIGINS or (origin and "*" in ORIGINS):
        response.set_header("Access-Control-Allow-Origin", origin)
        response.set_header("Access-Control-Expose-Headers", EXPOSED)
        if request.method == "OPTIONS":
            response.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
            response.set_header("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match, If-None-Match")
            response.set_header("Access-Control-Max-Age", "600")  # seconds


if ORIGINS:
    app.add_hook("after_request", allow_origin)
if models.is_pooled:
    app.add_hook("after_request", models.database.close)  # hands the connection back


@app.hook("before_request")
def refuse_garbled_path():
    """Refuse a path that is not UTF-8: Bottle drops the bad bytes, and so would reach another course."""
    path = request.environ["bottle.raw_path"]
    if not path.isascii() and path.encode("latin1") != request.environ["PATH_INFO"].encode():
        raise HTTPError(400, "the path must be percent-encoded UTF-8")


# -- Input validation --------------------------------------------------------------------------------------------------

MAX_BODY = 16 * 1024 * 1024  # bytes
MAX_ROWS = 400_000  # courses in an upload; such a body has fewer, if it is not made to use up the memory
BOTH = "Course name and instructor's name must be provided"
EITHER = "Course name or instructor's name must be provided"
LIST_PARAMETERS = (
    "the parameters are q, instructor, sort (id, code, name or instructor, with - in front for descending), "
    "limit (1 to 1000), offset (0 or more), after (as in the link to the next page) and token, each once"
)


class Login(msgspec.Struct):
    username: Username = None
    password: Password = None


class Change(msgspec.Struct):
    name: Name = None
    instructor: Instructor = None


class NewCourse(Change):
    code: Code = None


class Q(Text):
    pass


class After(Text):
    limit, rule = 150, "as in the link to the next page"
    refused = re.compile(Text.refused.pattern + r"|^(?!\d{1,18}:)", re.ASCII)


class ListParameters(msgspec.Struct, forbid_unknown_fields=True):
    q: Q = ""
    instructor: Instructor = ""
    sort: Literal["id", "code", "name", "instructor", "-id", "-code", "-name", "-instructor"] = "id"
    limit: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 0
    offset: Annotated[int, msgspec.Meta(ge=0, le=10**12)] = 0
    after: After = ""
    token: str = ""


def make_field(kind, value):
    return kind(value)


def read_form(text):
    """Return a Login from a form (RFC 6749 §4.3.2); raise ValueError where it is none."""
    fields = dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=20))
    return msgspec.convert(fields, Login, dec_hook=make_field)


def json_reader(kind):
    return msgspec.json.Decoder(kind, dec_hook=make_field).decode


READERS = {  # what is read, from which types of content, and how
    Login: {"application/json": json_reader(Login), "application/x-www-form-urlencoded": read_form},
    Change: {"application/json": json_reader(Change)},
    NewCourse: {
        "application/json": json_reader(NewCourse | Annotated[list, msgspec.Meta(max_length=MAX_ROWS)]),
        "text/csv": functools.partial(models.read_csv, most=MAX_ROWS),
    },
}


def require(given, message):
    """Raise 400 with the message unless `given`."""
    if not given:
        raise HTTPError(400, message)


def read_body():
    """Return the request's body, in bytes; raise 413 where it is larger than MAX_BODY, 400 where it is not whole."""
    length, most = request.environ.get("CONTENT_LENGTH") or "", MAX_BODY + 1
    known = length.isdecimal()
    if not known:  # a server that decodes chunks, which come without a length, says so
        length = most if request.environ.get("wsgi.input_terminated") else 0
    length = min(int(length), most)
    try:
        body = request.environ["wsgi.input"].read(length)
    except Exception:  # noqa: BLE001 (each server raises its own, where a chunk is bad or the client has gone)
        raise HTTPError(400, "the body cannot be read, or it broke off") from None
    if len(body) == most:
        raise HTTPError(413, f"the body is larger than {MAX_BODY} bytes")
    if known and len(body) < length:  # gunicorn and granian give what there is
        raise HTTPError(400, "the body is shorter than its Content-Length")
    return body


def read_input(kind):
    """Return the request's body as a `kind`, or where it has many as a list; raise 400 or 415 with what to mend."""
    readers, content_type = READERS[kind], request.content_type.partition(";")[0].strip()
    if content_type not in readers:
        raise HTTPError(415, f"send the header Content-Type: {' or '.join(readers)}, and the body in that form")
    try:
        return readers[content_type](read_body().decode("utf-8-sig"))
    except msgspec.ValidationError as error:
        raise HTTPError(400, explain(error)) from None
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise HTTPError(400, f"the body is not {content_type}: {error}") from None


def read_parameters():
    """Return what a list is asked for, as sent and as ListParameters; raise 400 for what is not known or not good."""
    if not request.environ.get("QUERY_STRING"):
        return {}, ListParameters()
    try:
        sent = request.query.decode()
        require(len(sent) == len(list(sent.allitems())), LIST_PARAMETERS)
        return dict(sent), msgspec.convert(dict(sent), ListParameters, strict=False, dec_hook=make_field)
    except msgspec.ValidationError as error:
        wrong = explain(error).replace("Object contains unknown field", "there is no parameter")
        raise HTTPError(400, f"{wrong}; {LIST_PARAMETERS}") from None
    except UnicodeDecodeError:
        raise HTTPError(400, "the query must be percent-encoded UTF-8") from None


def asks_for(media_type, rather_than):
    """Return whether Accept names a media type and rates it no lower than another (RFC 9110 §12.5.1)."""
    accept = request.environ.get("HTTP_ACCEPT", "").lower()
    if media_type not in accept:
        return False
    rates = dict(re.findall(r"([^\s,;]+)\s*(?:;[^,]*?\bq=(\d(?:\.\d{0,3})?))?[^,]*", accept))
    return float(rates.get(media_type, "0") or 1) >= max(float(rates.get(rather_than, "0") or 1), 0.001)


# -- Tokens ------------------------------------------------------------------------------------------------------------

REASONS = {  # PyJWT's own words can quote the token, and must not reach a header
    jwt.ExpiredSignatureError: "the token has expired, log in again",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAlgorithmError: "the token is not signed with HS256",
    jwt.InvalidSignatureError: "the token is not signed with this API's key",
    jwt.MissingRequiredClaimError: "the token lacks sub, iat or exp",
}
CLOCK_SECONDS = 5  # how far the clocks of several machines may be apart: another one's token is not of the future


@functools.cache
def signing_key():
    """Return the key that signs the tokens: SECRET_KEY, or the one kept in the database."""
    return os.fsencode(settings.SECRET_KEY or models.SigningKey.get_key())


def make_token(username):
    """Return a token (RFC 7519) for a user, good for TOKEN_SECONDS from now."""
    now = int(time.time())
    claims = {"sub": username, "iat": now, "exp": now + settings.TOKEN_SECONDS}
    return jwt.encode(claims, signing_key(), algorithm="HS256")


@functools.lru_cache(maxsize=1024)
def verify_token(token, key):
    """Return when a token of ours expires, in Unix time; raise jwt.InvalidTokenError for any other token.

    What is good is remembered, for its signature never changes. Whether it has expired is asked anew each time.
    """
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):  # base64url without padding (RFC 7515 §2)
        raise jwt.DecodeError
    options = {"require": ["sub", "iat", "exp"]}
    claims = jwt.decode(token, key, algorithms=["HS256"], options=options, leeway=CLOCK_SECONDS)
    if isinstance(claims["exp"], str) or isinstance(claims["iat"], str):  # numbers (RFC 7519 §2), but PyJWT takes them
        raise jwt.DecodeError
    return int(claims["exp"])


def check_token():
    """Raise 401 unless the request has a token of ours that has not expired, 400 where it has two (RFC 6750)."""
    scheme, _, credentials = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    tokens = list(request.query.getall("token")) if request.environ.get("QUERY_STRING") else []
    if scheme.lower() == "bearer":
        tokens.append(credentials.strip())
    if not tokens:
        raise HTTPError(401, "Invalid token", www_authenticate="Bearer")
    if len(tokens) > 1:
        message = "send one token, either as ?token= or in the Authorization header"
        raise HTTPError(400, message, www_authenticate='Bearer error="invalid_request"')
    try:
        if verify_token(tokens[0], signing_key()) <= time.time():
            raise jwt.ExpiredSignatureError
    except jwt.InvalidTokenError as error:
        reason = REASONS.get(type(error), "the token is malformed")
        challenge = f'Bearer error="invalid_token", error_description="{reason}"'
        raise HTTPError(401, "Invalid token", www_authenticate=challenge) from None


class JWTPlugin:
    """Lets a request through to its route only with a token, unless the route says `public=True`."""

    name, api = "jwt", 2

    def apply(self, callback, route):
        if route.config.get("public"):
            return callback

        def guarded(**arguments):
            check_token()
            return callback(**arguments)

        return guarded


app.install(JWTPlugin())

# -- Routes: login -----------------------------------------------------------------------------------------------------

MOST_LOGINS = 16  # at once; each waits for those before it
logins, hashing = threading.BoundedSemaphore(MOST_LOGINS), threading.Lock()


def get_address():
    """Return the client's address; of IPv6 the first 64 bits, since a client has all that follow (RFC 6177 §2)."""
    address = request.environ.get("REMOTE_ADDR", "")
    with contextlib.suppress(ValueError):
        ip = ipaddress.IPv6Address(address)
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
    return address


def check_throttle(*keys):
    """Raise 429 where there were too many wrong passwords for the keys, a limit and what it counts for each."""
    for key in keys:
        if not throttle.test(*key):
            seconds = max(1, math.ceil(throttle.get_window_stats(*key).reset_time - time.time()))
            message = f"there were too many wrong passwords, try again in {seconds} seconds"
            raise HTTPError(429, message, retry_after=str(seconds))


def check_password(username, password):
    """Raise 400 for a wrong name or password, 429 after too many of them, 503 for too many logins at once.

    One password is hashed at a time, so that the other cores and threads are left to other requests.
    """
    address = get_address()
    keys = ((NAME_LIMIT, address, username), (ADDRESS_LIMIT, address))
    check_throttle(*keys)
    if not logins.acquire(blocking=False):
        raise HTTPError(503, "there are too many logins at once, try again soon", retry_after="1")
    try:
        with hashing:
            check_throttle(*keys)  # another one may have been wrong meanwhile
            if User.match_user(username, password):
                return
            for key in keys:
                throttle.hit(*key)
    finally:
        logins.release()
    raise HTTPError(400, "username or password is not correct")


@app.post("/login", public=True)
def log_in():
    """Trade a name and a password for a token, which is the whole body, or in JSON where Accept asks for it."""
    login = read_input(Login)
    require(login.username and login.password, "username and password must be provided")
    check_password(login.username, login.password)
    token = make_token(login.username)
    response.set_header("Cache-Control", "no-store")  # RFC 6749 §5.1
    if asks_for("application/json", rather_than="text/plain"):
        return msgspec.json.encode(
            {"access_token": token, "token_type": "Bearer", "expires_in": settings.TOKEN_SECONDS}
        )
    response.content_type = "text/plain"
    return token


# -- Routes: courses ---------------------------------------------------------------------------------------------------


def location(code):
    """Return the path of a course, percent-encoded where RFC 3986 §3.3 asks for it."""
    return "/courses/" + quote(code, safe="!$&'()*+,;=:@")


def make_etag(body):
    """Return the strong validator of a body (RFC 9110 §8.8.1)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(condition, etag):
    """Return whether If-Match or If-None-Match names an ETag, or any with `*`."""
    return condition.strip() == "*" or etag in re.findall(r'(?:W/)?"[^"]*"', condition)


def answer(body):
    """Answer with a body and its ETag, or 304 where the client has it already (RFC 9110 §13.1.2)."""
    etag = make_etag(body)
    response.set_header("ETag", etag)
    condition = request.environ.get("HTTP_IF_NONE_MATCH")
    if condition and matches(condition.replace("W/", ""), etag):
        response.status = 304
        return b""
    return body


def expected(code):
    """Return the course that If-Match names, or None without that header; raise 412 where it has changed.

    The write then asks for the course to be as it is here, so nothing can come between (RFC 9110 §13.1.1).
    """
    condition = request.environ.get("HTTP_IF_MATCH")
    course = None if condition is None else Course.get_json(code)
    if course and not matches(condition, make_etag(course)):
        raise HTTPError(412, CHANGED)
    return course and msgspec.json.decode(course)


def link(sent, page, limit, offset):
    """Return the Link header of a page: the first, the previous, the next and the last one (RFC 8288)."""
    last = max(page.total - 1, 0) // limit * limit
    changes = {"first": {"offset": 0}, "last": {"offset": last}}
    if offset:
        changes["prev"] = {"offset": max(min(offset - limit, last), 0)}
    if page.cursor:
        changes["next"] = {"offset": offset + limit, "after": page.cursor}
    kept = {name: value.strip() for name, value in sent.items() if name != "after"}
    return ", ".join(f'</courses?{urlencode(kept | change)}>; rel="{name}"' for name, change in changes.items())


@app.get(["/courses", "/courses/"])
def list_courses():
    """Answer the courses that the query asks for, by default every one in the order they were added."""
    sent, asked = read_parameters()
    page = Course.get_page(asked.q, asked.instructor, asked.sort, asked.limit, asked.offset, asked.after)
    response.set_header("X-Total-Count", str(page.total))
    response.set_header("Vary", "Accept")
    if asked.limit:
        response.set_header("Link", link(sent, page, asked.limit, asked.offset))
    if asks_for("text/csv", rather_than="application/json"):
        response.content_type = "text/csv; charset=utf-8; header=present"
        return answer(models.make_csv(page.courses))
    return answer(b'{"courses": %b}' % page.courses)


@app.get("/courses/<code>")
def get_course(code):
    """Answer one course."""
    course = Course.get_json(code)
    if not course:
        raise HTTPError(404, UNKNOWN_CODE)
    return answer(course)


@app.post("/courses")
def add_course():
    """Add a course, or many, all or none, from a JSON array or CSV."""
    new = read_input(NewCourse)
    if isinstance(new, list):
        return add_courses(new)
    require(new.code, Code.missing)
    require(new.name and new.instructor, BOTH)
    try:
        Course.add_course(new.code, new.instructor, new.name)
    except peewee.IntegrityError:
        raise HTTPError(409, f"Course code {new.code} is in the courses already") from None
    return HTTPResponse(status=201, location=location(new.code), content_type="text/plain")


def add_courses(rows):
    """Answer an upload of courses with their number, or with the first hundred bad rows."""
    try:
        created = Course.add_courses(rows)
    except models.UploadError as error:
        more = f"; the first 100 follow, and there are {len(error.rows) - 100} more" if len(error.rows) > 100 else ""
        named = [{"row": number, "error": message} for number, message in error.rows[:100]]
        raise HTTPError(409 if error.conflict else 400, {"error": f"{error}{more}", "rows": named}) from None
    response.status = 201
    return msgspec.json.encode({"created": created})


def update(code, change):
    """Answer a change of a course."""
    old = expected(code)
    if not Course.update_course(code, change.instructor, change.name, old):
        raise HTTPError(412, CHANGED) if old else HTTPError(404, UNKNOWN_CODE)
    return HTTPResponse(status=204, location=location(code))


@app.put("/courses/<code>")
def replace_course(code):
    """Set the name and the instructor of a course."""
    change = read_input(Change)
    require(change.name and change.instructor, BOTH)
    return update(code, change)


@app.patch("/courses/<code>")
def change_course(code):
    """Set the name or the instructor of a course, or both."""
    change = read_input(Change)
    require(change.name or change.instructor, EITHER)
    return update(code, change)


@app.delete("/courses/<code>")
def delete_course(code):
    """Delete a course."""
    old = expected(code)
    if not Course.delete_course(code, old):
        raise HTTPError(412, CHANGED) if old else HTTPError(400, UNKNOWN_CODE)
    return HTTPResponse(status=204, location="/courses/")


# -- Routes: health and documents --------------------------------------------------------------------------------------

HERE = os.path.dirname(os.path.abspath(__file__))
SWAGGER = importlib.util.find_spec("offapi").submodule_search_locations[0]  # not imported: it would read 9 MB
DOCS_POLICY = (  # Content Security Policy, level 3; the hash is of the script in docs.html
    "default-src 'none'; script-src 'self' 'sha256-A5c7RtXDQjZIRKNTEdspnbE1Stp2LBrF3HFkEl8X9jY='; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@app.get("/health", public=True)
def get_health():
    """Answer whether the database answers."""
    models.check_health()
    return '{"status": "ok"}'


def send_file(name, folder, **options):
    """Answer a file, whole, whatever Range asks for."""
    request.environ.pop("HTTP_RANGE", None)
    return static_file(name, folder, etag=False, **options)


@app.get("/", public=True)
def go_to_docs():
    """Lead to the page of this API."""
    return HTTPResponse(status=302, location="/docs")


@app.get("/docs", public=True)
def get_docs():
    """Answer the page of this API, to read and to try it."""
    return send_file("docs.html", HERE, headers={"Content-Security-Policy": DOCS_POLICY})


@app.get("/docs/<name:re:swagger_(bundle\\.js|style\\.css)>", public=True)
def get_docs_file(name):
    """Answer a file of that page."""
    kind = "text/css" if name.endswith("css") else "text/javascript"
    return send_file(name, SWAGGER, mimetype=kind)


@app.get("/openapi.yaml", public=True)
def get_openapi():
    """Answer the description of this API, for that page and for other programs."""
    return send_file("openapi.yaml", HERE, mimetype="application/yaml")  # RFC 9512


# -- The server --------------------------------------------------------------------------------------------------------

MOST_CONNECTIONS = 2000
LIMITS = {
    "channel_timeout": 30,  # seconds an idle connection stays open
    "cleanup_interval": 10,  # seconds between two looks for idle ones
    "max_request_header_size": 32 * 1024,  # bytes
    "max_request_body_size": MAX_BODY + 1,  # bytes; what reaches this is refused
    "inbuf_overflow": MAX_BODY + 1,  # bytes; more would go to a file, and the disk may be read-only
    "outbuf_overflow": 2**30,
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # nothing reads them
}
HANDSHAKE_SECONDS = 0.01  # how long a client that began to connect before SIGTERM may take for it
LINGER_SECONDS = 0.5  # after SIGTERM, how long to wait for a request that is on its way
DRAIN_SECONDS = models.BUSY_SECONDS + 3  # and for one that is worked on: Docker kills after 10
STALL_SECONDS = 0.001 if models.is_pooled else 0.005  # how long a request may take before another thread serves others

MOST_BLANKS, MOST_CHUNK_HEAD = 1000, 4096  # in the headers of a request; bytes

stopping, ending = threading.Event(), threading.Event()  # no new connections; no new requests
access_log = collections.deque()  # the lines that are yet to be written


class Answer:
    """What every answer of waitress gets, to a request for the app or to one that waitress refuses."""

    environ = None

    def build_response_header(self):
        if stopping.is_set():
            self.request.headers["CONNECTION"] = "close"
        return super().build_response_header()

    def set_close_on_finish(self):
        """Close where the request asks for it; waitress also would after a 204, which has no length to give."""
        asked = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if asked or self.has_body:
            super().set_close_on_finish()

    def service(self):
        """Answer, and log it; never the query, nor a header, since both can hold a token."""
        try:
            super().service()
        finally:
            if log.isEnabledFor(logging.INFO):
                client = self.environ["REMOTE_ADDR"] if self.environ else self.channel.addr[0]
                method = getattr(self.request, "command", "-")
                path = quote(getattr(self.request, "path", "-"), encoding="latin1")
                status, size = self.status[:3], self.content_bytes_written
                start = time.strftime(TIME_FORMAT, time.gmtime(self.start_time))
                milliseconds = (time.time() - self.start_time) * 1000
                access_log.append(f"{start} INFO {client} {method} {path} {status} {size} bytes {milliseconds:.1f} ms")


class AppAnswer(Answer, WSGITask):
    pass


class Refusal(Answer, ErrorTask):
    def execute(self):
        error = self.request.error
        body = msgspec.json.encode({"error": f"{error.reason}: {error.body}"})
        self.status, self.content_length = f"{error.code} {error.reason}", len(body)
        self.response_headers += [("Content-Type", "application/json"), *HEADERS.items()]
        self.set_close_on_finish()
        self.channel.refused = True
        self.write(body)


class Parser(HTTPRequestParser):
    """waitress' parser, which refuses what it would take long for."""

    def received(self, data):
        consumed = super().received(data)
        if self.chunked and len(self.body_rcv.control_line) + len(self.body_rcv.trailer) > MOST_CHUNK_HEAD:
            self.error, self.completed = BadRequest("the head of a chunk is too long"), True
        return consumed

    def parse_header(self, header_plus):
        """Refuse what another server could read in another way, too (RFC 9112 §6.1)."""
        if header_plus.count(b" ") + header_plus.count(b"\t") > MOST_BLANKS:
            raise ParsingError("there are too many blanks in the headers")
        try:
            super().parse_header(header_plus)
        except ValueError:  # which waitress does not expect of Python
            raise ParsingError("there is a bad number or address in the headers") from None
        if b"transfer-encoding" in header_plus.lower() and not (self.chunked and "CONTENT_LENGTH" not in self.headers):
            raise ParsingError("Transfer-Encoding must be chunked and without Content-Length, in HTTP/1.1")


class Channel(HTTPChannel):
    task_class, error_task_class, parser_class = AppAnswer, Refusal, Parser
    refused = waiting = False

    def readable(self):
        """Begin no new request when the server is ending."""
        return bool(self.request or not ending.is_set()) and super().readable()

    def writable(self):
        """Hang up on a client that asks for more and reads nothing; waitress does so only after the last request."""
        if self.waiting and time.time() - self.last_activity > self.adj.channel_timeout:
            self.handle_close()
            return False
        return super().writable()

    def handle_write(self):
        """Send; when all is sent, let the next request be worked on that waits for it."""
        super().handle_write()
        with self.outbuf_lock:
            if self.waiting and not self.total_outbufs_len:
                self.waiting = False
                self.server.add_task(self)

    def handle_close(self):
        """Close; after a refusal, once the client has closed, or it could lose the answer (RFC 9112 §9.6)."""
        if self.connected and self.refused:
            self.refused = self.will_close = False
            self.readable, self.received = lambda: True, lambda _data: False
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self.socket.shutdown(socket.SHUT_WR)
        else:
            super().handle_close()


def refuse_more(listener):
    """Let nobody else begin to connect, where Linux can: who does so between accept() and close() would be reset.

    A filter drops each SYN that comes for the listener. Its sender tries again after a second, and is refused by then.
    """
    if sys.platform == "linux":  # BPF: load the byte of the TCP flags; where SYN is set take 0 bytes, else all
        code = array.array("B", struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 2, 6, 0, 0, 0, 6, 0, 0, 2**32 - 1))
        with contextlib.suppress(OSError):
            listener.socket.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 4, code.buffer_info()[0]))


class Loop:
    """Runs waitress on one thread, from the socket to the answer, as long as that keeps up.

    Threads that hand each request, and the interpreter's lock, to each other spend more on that than on the request
    (measured, see benchmarks/README.md). So one leads: it watches the sockets and runs the tasks itself. When a task
    takes longer than STALL_SECONDS another thread takes the lead, and this one follows when it is done.
    """

    def __init__(self, sockets):
        self.sockets, self.tasks = sockets, collections.deque()
        self.leader, self.followers = None, []  # each a lock, which its thread waits for
        self.started = None  # when the leader's task did, on the monotonic clock
        self.deaf = False  # whether a look at the sockets has begun and ended since `ending`
        self.busy = threading.Event()
        self.watching = threading.Lock()  # for the moment in which an old leader still watches the sockets

    def start(self, threads):
        self.listeners = [listener for listener in self.sockets.values() if isinstance(listener, BaseWSGIServer)]
        for listener in self.listeners:
            listener.channel_class = Channel
        for _ in range(threads):
            threading.Thread(target=self.follow, daemon=True).start()

    def add_task(self, channel):
        """Take a request that has come, once its client has read the answers before: no thread waits for that."""
        with channel.outbuf_lock:
            channel.waiting = channel.total_outbufs_len > 0
            if not channel.waiting:
                self.tasks.append(channel)

    def follow(self):
        """Wait for the lead, and lead until another thread does."""
        me = threading.Lock()
        me.acquire()
        try:
            while True:
                self.followers.append(me)
                me.acquire()
                while self.leader is me:
                    self.lead(me)
        finally:  # a fault of waitress; better to stop than to hang without a leader
            stopping.set()

    def lead(self, me):
        """Watch the sockets until something comes, and run the tasks that come of it."""
        with self.watching:
            if stopping.is_set():
                self.stop_listening()
            deaf = ending.is_set()
            poll = max(self.sockets) >= 1024  # select() is faster, and cannot watch those
            seconds = 0 if self.tasks else STALL_SECONDS if deaf else 1
            wasyncore.loop(seconds, use_poll=poll, map=self.sockets, count=1)
            self.deaf = deaf
        while self.leader is me:
            try:
                task = self.tasks.popleft()
            except IndexError:
                break
            self.started = time.monotonic()
            if not self.busy.is_set():
                self.busy.set()
            task.service()
            if self.leader is me:
                self.started = None

    def stop_listening(self):
        self.busy.set()
        for listener in self.listeners:
            if listener.accepting:
                refuse_more(listener)
                time.sleep(HANDSHAKE_SECONDS)
                for _ in range(listener.adj.backlog):  # who has connected by now is still served
                    listener.handle_accept()
                wasyncore.dispatcher.close(listener)

    def look(self):
        """Let another thread lead where none does or its task takes long; write the access log."""
        if self.leader and not (self.started or access_log or stopping.is_set()):
            self.busy.wait(1)
        time.sleep(STALL_SECONDS)
        self.busy.clear()
        started = self.started
        if self.followers and (not self.leader or (started and time.monotonic() - started > STALL_SECONDS)):
            self.leader, self.started = self.followers.pop(), None
            self.leader.release()
        lines = [access_log.popleft() for _ in range(len(access_log))]
        if lines:
            with contextlib.suppress(OSError):  # a full disk or a closed pipe must not stop the service
                print(*lines, sep="\n", flush=True)

    def serve(self):
        """Serve until SIGTERM or Ctrl-C, then finish the requests under way. A second signal stops at once."""

        def stop(number, _frame):
            signal.signal(number, signal.SIG_DFL)
            stopping.set()
            self.listeners[0].pull_trigger()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        while not stopping.is_set():
            self.look()
        self.look_until(lambda: not any(listener.accepting for listener in self.listeners), DRAIN_SECONDS)
        self.look_until(lambda: not self.channels(), LINGER_SECONDS)
        ending.set()
        self.listeners[0].pull_trigger()
        self.look_until(lambda: self.deaf and not self.is_busy(), DRAIN_SECONDS)
        self.look()  # the last lines of the log

    def look_until(self, is_over, seconds):
        """Go on until something is over, or so many seconds are."""
        end = time.monotonic() + seconds
        while not is_over() and time.monotonic() < end:
            self.look()

    def channels(self):
        return [channel for channel in list(self.sockets.values()) if isinstance(channel, Channel)]

    def is_busy(self):
        return any(channel.request or channel.requests or channel.total_outbufs_len for channel in self.channels())


def prepare():
    """Make ready what the app needs of the database; return whether it has a user."""
    models.prepare()
    if models.IN_MEMORY:
        import seed  # only here, for a quick start: it brings the progress bar

        seed.add_dummy_data()
    try:
        signing_key()
    except peewee.PeeweeException as error:
        sys.exit(f"the database {models.DATABASE_NAME} cannot keep a key: {error}; set SECRET_KEY, or make it writable")
    has_users = User.select().exists()
    models.serve_requests()
    return has_users


def raise_file_limit():
    """Let the process open as many files as it may, for each connection is one; return how many connections fit."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return min(MOST_CONNECTIONS, most - 100)
    return MOST_CONNECTIONS


def main():
    """Serve the app with waitress, as the settings say."""
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    logging.Formatter.converter = time.gmtime
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stdout, level=settings.LOG_LEVEL, format=form, datefmt=TIME_FORMAT)
    logging.getLogger("peewee").setLevel("INFO")  # its DEBUG shows password hashes and the key
    has_users = prepare()
    sockets = {}
    loop = Loop(sockets)
    try:
        fit = raise_file_limit()
        create_server(
            app, sockets, _dispatcher=loop, host=settings.HOST, port=settings.PORT, connection_limit=fit, **LIMITS
        )
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen on {settings.HOST}:{settings.PORT}: {error}; see HOST and PORT")
    loop.start(settings.THREADS + MOST_LOGINS)
    url = f"http://{settings.HOST}:{loop.listeners[0].effective_port}"
    print(f"Serving {models.DATABASE_NAME} on {url}; Ctrl-C stops.")
    body = '{"username": "...", "password": "..."}'
    how = f"Log in: curl {url}/login -H 'Content-Type: application/json' -d '{body}'"
    print(how if has_users else "There is no user yet: run python seed.py", flush=True)
    loop.serve()
    print("Stopped.", flush=True)


if __name__ == "__main__":
    main()
else:
    prepare()
