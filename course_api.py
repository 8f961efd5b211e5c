"""The course API: a catalogue of courses over HTTP, behind a login.

    python seed.py          # adds the dummy data, once
    python course_api.py    # serves on http://127.0.0.1:5000 until Ctrl-C or SIGTERM

Any other WSGI server can serve it as `course_api:app`, once seed.py has prepared the database.

Settings are environment variables, read once at start. An invalid value stops the program. NAME_FILE can name a file
that holds the value instead, such as a Docker secret:

    HOST           address to listen on (127.0.0.1)
    PORT           port to listen on (5000); 0 takes a free one
    URL_PREFIX     path below which the API lives, such as /catalogue (none)
    DATABASE_URL   the database (sqlite:///courses.db); sqlite:///:memory: keeps nothing on disk
    SECRET_KEY     signs the tokens, 32 bytes or more; unset, a random key is made once and kept in the database
    TOKEN_SECONDS  token lifetime in seconds (200)
    PUBLIC_READ    true: courses can be read without a token (false)
    LOGIN_LIMIT    failed logins allowed per user name and address (5/5minutes); ten times as many per address
    LIMIT_STORAGE  where failed logins are counted (memory://); redis://host:6379 for several processes
    TRUSTED_PROXY  address of the proxy whose X-Forwarded-For is believed, or * for any (none)
    CORS_ORIGINS   web pages that may use the API, such as https://a.example, https://b.example; * for all (none)
    THREADS        requests handled at once (4), plus up to 16 logins
    LOG_LEVEL      DEBUG, INFO, WARNING or ERROR (INFO); INFO writes a line per request to standard output

Every error is JSON of one shape, and says how to fix the request: {"error": "a sentence"}
"""

import argparse
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
from msgspec import Meta
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

import models
import seed
from models import Course, User, ValidationError, clean, read_setting

# -- Settings ----------------------------------------------------------------------------------------------------------


LEVEL = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
RATE = Annotated[str, Meta(pattern=r"^[1-9]\d* *(/|per) *\d* *(second|minute|hour|day|month|year)s?$")]
ORIGINS = Annotated[str, Meta(pattern=r"^((\*|[A-Za-z][\w+.-]*://[^/,\s]+)([,\s]+|$))*$")]
HOST = read_setting("HOST", "127.0.0.1")
PREFIX = Annotated[str, Meta(pattern=r"^(/[\w.~-]+)*$")]
PORT = read_setting("PORT", "5000", Annotated[int, Meta(ge=0, le=65535)], "a whole number from 0 to 65535")
URL_PREFIX = read_setting("URL_PREFIX", "", PREFIX, "a path like /catalogue, with no / at the end")
SECRET_KEY = os.fsencode(read_setting("SECRET_KEY", ""))
TOKEN_SECONDS = read_setting("TOKEN_SECONDS", "200", Annotated[int, Meta(ge=1, le=10**9)], "a whole number, 1 or more")
PUBLIC_READ = read_setting("PUBLIC_READ", "false", bool, "true or false")
LOGIN_LIMIT = limits.parse(read_setting("LOGIN_LIMIT", "5/5minutes", RATE, "like 5/5minutes"))
LIMIT_STORAGE = read_setting("LIMIT_STORAGE", "memory://")
TRUSTED_PROXY = read_setting("TRUSTED_PROXY", "")
CORS_ORIGINS = read_setting("CORS_ORIGINS", "", ORIGINS, "origins like https://a.example, or *").lower()
THREADS = read_setting("THREADS", "4", Annotated[int, Meta(ge=1, le=1000)], "a whole number from 1 to 1000")
LOG_LEVEL = read_setting("LOG_LEVEL", "INFO", LEVEL, "DEBUG, INFO, WARNING or ERROR")

if 0 < len(SECRET_KEY) < 32:  # RFC 7518 §3.2: HS256's own length
    sys.exit("SECRET_KEY must have 32 bytes or more; make one with: openssl rand -hex 32")
try:
    timeouts = {"socket_timeout": models.CONNECT_SECONDS, "socket_connect_timeout": models.CONNECT_SECONDS}
    storage = limits.storage.storage_from_string(LIMIT_STORAGE, wrap_exceptions=True, **timeouts)
except (limits.errors.ConfigurationError, NotImplementedError, ValueError):
    sys.exit("LIMIT_STORAGE must be memory://, or like redis://host:6379 with requirements-servers.txt installed")
try:
    trusted_proxy = TRUSTED_PROXY if TRUSTED_PROXY in ("", "*") else str(ipaddress.ip_address(TRUSTED_PROXY))
except ValueError:
    sys.exit("TRUSTED_PROXY must be an IP address such as 127.0.0.1, or *; see python course_api.py --help")
allowed_origins = CORS_ORIGINS.replace(",", " ").split()

VERSION = "2.0.0"
log = logging.getLogger("course_api")
bottle.Response.default_content_type = "application/json"
app = bottle.Bottle()
app.uninstall(True)  # Bottle's own plugins, for dicts and templates: each route returns its JSON as text

# -- Errors and hooks --------------------------------------------------------------------------------------------------


def render_error(error):
    """Return every error, Bottle's included, as JSON of one shape; its headers stay."""
    if error.status_code == 405:
        methods = {"OPTIONS", *error.headers["Allow"].split(",")}
        allowed = sorted(methods | ({"HEAD"} if "GET" in methods else set()))
        response.set_header("Allow", ", ".join(allowed))
        if request.method == "OPTIONS":
            response.status = 204
            return b""
        error.body = f"{request.method} is not allowed for {request.path}; use {' or '.join(allowed)}"
    return msgspec.json.encode(error.body if isinstance(error.body, dict) else {"error": error.body})


app.default_error_handler = render_error


def unavailable(what, error):
    """Log an outage, and return the 503 for it (RFC 9110 §15.6.4)."""
    log.error("%s is not available: %s", what, " ".join(str(error).split()))
    return HTTPError(503, f"{what} is not available; try again soon", retry_after="1")


@app.install
def handle_exceptions(callback):
    """Turn exceptions into errors: 400 or 409 for bad input, 503 for an outage, 500 for a bug.

    An outage or a bug closes the connection, so that the next request opens a new one.
    """

    def wrapper(**arguments):
        try:
            return callback(**arguments)
        except HTTPResponse:
            raise
        except models.UploadError as error:
            rows = [{"row": number, "error": message} for number, message in error.rows[:MAX_ERRORS]]
            raise HTTPError(409 if error.conflict else 400, {"error": str(error), "rows": rows}) from None
        except ValidationError as error:
            raise HTTPError(400, str(error)) from None
        except limits.errors.StorageError as error:
            raise unavailable("the login limit's storage", error.storage_error) from None
        except Exception as error:
            models.database.close()
            if models.is_outage(error):
                raise unavailable("the database", error) from None
            log.exception("unexpected error")
            raise HTTPError(500, "Internal Server Error") from None

    return wrapper


EXPOSED_HEADERS = "ETag, Link, Location, Retry-After, WWW-Authenticate, X-Total-Count"
REQUESTED_HEADERS = "HTTP_ACCESS_CONTROL_REQUEST_HEADERS"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a URL can hold a token
    "Cache-Control": "private, no-cache",  # only the client may keep it, and must revalidate (RFC 9111 §5.2.2)
}


@app.hook("after_request")
def add_headers():
    """Add the HEADERS that the response lacks."""
    headers = response.headers.dict  # set_header costs four times as much (measured)
    for name, value in HEADERS.items():
        headers.setdefault(name, [value])


def allow_origin():
    """Let the pages of CORS_ORIGINS read every response, errors included (Fetch standard, CORS protocol)."""
    response.set_header("Vary", "Accept, Origin")
    origin = request.environ.get("HTTP_ORIGIN", "")
    if origin and (origin in allowed_origins or "*" in allowed_origins):
        response.set_header("Access-Control-Allow-Origin", origin)
        response.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)
        if request.method == "OPTIONS":
            response.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
            response.set_header("Access-Control-Allow-Headers", request.environ.get(REQUESTED_HEADERS, "Authorization"))
            response.set_header("Access-Control-Max-Age", "600")  # seconds


def trust_proxy():
    """Take the client's address, without its port, from the end of X-Forwarded-For, where TRUSTED_PROXY appends it."""
    environ = request.environ
    if trusted_proxy in ("*", environ.get("REMOTE_ADDR")):
        forwarded = environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip(' \t"')
        address = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]+):\d+$", r"\1\3", forwarded)  # [v6]:port or v4:port
        with contextlib.suppress(ValueError):
            environ["REMOTE_ADDR"] = str(ipaddress.ip_address(address))


@app.hook("before_request")
def refuse_invalid_path():
    """Refuse a path with NUL, which no database stores, or that is not UTF-8, from which Bottle would drop bytes."""
    path = request.environ["bottle.raw_path"]
    if "\0" in path or (not path.isascii() and path.encode("latin1") != request.environ["PATH_INFO"].encode()):
        raise HTTPError(400, "the path must be percent-encoded UTF-8 without NUL")


if allowed_origins:
    app.add_hook("after_request", allow_origin)
if trusted_proxy:
    app.add_hook("before_request", trust_proxy)
if models.POOLED:
    app.add_hook("after_request", models.database.close)  # returns the connection to the pool

# -- Request parsing ---------------------------------------------------------------------------------------------------

MAX_BODY = 16 * 1024 * 1024  # bytes
MAX_ROWS, MAX_ERRORS = 400_000, 100  # courses in an upload, and bad rows that a response names
JSON, CSV, FORM = "application/json", "text/csv", "application/x-www-form-urlencoded"
ORDER = Literal["id", "code", "name", "instructor", "-id", "-code", "-name", "-instructor"]
TEXT = Annotated[str, Meta(pattern=f"^{models.RULES['name'][0]}$")]
CURSOR = Annotated[str, Meta(pattern=r"^-?(id|code|name|instructor):[0-9]{1,18}:[^\x00]*$")]
PARAMETERS = {  # the type of each query parameter, and its rule in words
    "q": (TEXT, models.RULES["name"][1]),
    "instructor": (TEXT, models.RULES["name"][1]),
    "sort": (ORDER, "id, code, name or instructor, with - in front for descending order"),
    "limit": (Annotated[int, Meta(ge=1, le=1000)], "a whole number from 1 to 1000"),
    "offset": (Annotated[int, Meta(ge=0, le=10**12)], "a whole number, 0 or more"),
    "after": (CURSOR, "copied from the link to the next page"),
    "update": (Annotated[str, Meta(pattern="^(?i:true|false)$")], "true or false"),
}
LIST_PARAMETERS = ("q", "instructor", "sort", "limit", "offset", "after")


def abort_unless(condition, message):
    """Raise 400 with the message unless the condition holds."""
    if not condition:
        raise HTTPError(400, message)


def parse_query(known):
    """Return the query's parameters that are not blank; raise 400 for an unknown, repeated or invalid one."""
    params = {}
    if not request.environ.get("QUERY_STRING"):
        return params
    try:
        pairs = [(name, text) for name, text in request.query.decode().allitems() if name != "token"]
        for name, text in pairs:
            use = f"use {', '.join(known)}" if known else "this path takes none but token"
            abort_unless(name in known, f"there is no parameter {name}; {use}")
            abort_unless(name not in params, f"the parameter {name} is repeated; send it once")
            kind, rule = PARAMETERS[name]
            if text.strip():  # a cursor can end in a blank, as the course does that it names
                params[name] = msgspec.convert(text if name == "after" else text.strip(), kind, strict=False)
    except msgspec.ValidationError:
        raise HTTPError(400, f"{name} must be {rule}") from None
    except UnicodeDecodeError:
        raise HTTPError(400, "the query must be percent-encoded UTF-8") from None
    return params


def read_body(*content_types):
    """Return the body's content type, one of these, and its bytes.

    Raises 415 for another type or a Content-Encoding, 413 for more than MAX_BODY bytes, 400 for a truncated body.
    """
    content_type = request.content_type.partition(";")[0].strip()
    if content_type not in content_types:
        raise HTTPError(415, f"send the header Content-Type: {' or '.join(content_types)}, and the body in that form")
    if "HTTP_CONTENT_ENCODING" in request.environ:  # RFC 9110 §8.4
        raise HTTPError(415, "send the body uncompressed, without Content-Encoding", accept_encoding="identity")
    limit, has_end = MAX_BODY + 1, request.environ.get("wsgi.input_terminated")  # by a server that decodes chunks
    try:
        length = request.content_length  # -1 if unknown, as with chunks
        body = request.environ["wsgi.input"].read(limit if has_end else min(max(length, 0), limit))
    except Exception:  # noqa: BLE001 (each server raises its own for a bad chunk or a client that has gone)
        raise HTTPError(400, "the body cannot be read, or is cut short") from None
    if len(body) == limit:
        raise HTTPError(413, f"the body is larger than {MAX_BODY} bytes")
    abort_unless(len(body) >= length, "the body is shorter than its Content-Length")
    return content_type, body


def decode_json(body):
    """Return the value of a JSON body; raise 400 if it is not JSON in UTF-8."""
    try:
        return msgspec.json.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8 text") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise HTTPError(400, f"the body is not JSON: {error}") from None


def clean_fields(document, *fields):
    """Return the fields that an object has; raise 400 if it is not an object, ValidationError for a bad field."""
    abort_unless(isinstance(document, dict), "the body must be a JSON object")
    return {field: clean(field, document[field]) for field in fields if field in document}


def prefers(media_type, over):
    """Return whether Accept rates one media type above another, wildcards included (RFC 9110 §12.5.1)."""
    accept = request.environ.get("HTTP_ACCEPT", "").lower()
    rates = dict(re.findall(r"([^\s,;]+)\s*(?:;[^,]*?\bq=([01](?:\.\d{0,3})?))?[^,]*", accept))

    def rate(wanted):
        ranges = (wanted, wanted.partition("/")[0] + "/*", "*/*")
        return next((float(rates[name] or 1) for name in ranges if name in rates), 0)

    return rate(media_type) > rate(over)


# -- Tokens and the JWT plugin -----------------------------------------------------------------------------------------

REASONS = {  # PyJWT's own messages can quote the token, and must not reach a header
    jwt.ExpiredSignatureError: "the token has expired; log in again",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAlgorithmError: "the token is not signed with HS256",
    jwt.InvalidSignatureError: "the token is not signed with this API's key",
    jwt.MissingRequiredClaimError: "the token lacks sub, iat or exp",
}
CLOCK_SKEW = 5  # seconds that the clocks of several machines may differ


@functools.cache
def signing_key():
    """Return the key that signs the tokens: SECRET_KEY, or the one in the database."""
    return SECRET_KEY or models.SigningKey.get_key().encode()


def make_token(username):
    """Return a token (RFC 7519) for a user that expires in TOKEN_SECONDS."""
    signing_key.cache_clear()  # a restored backup has a key of its own
    now = int(time.time())
    claims = {"sub": username, "iat": now, "exp": now + TOKEN_SECONDS}
    return jwt.encode(claims, signing_key(), algorithm="HS256")


@functools.lru_cache(maxsize=1024)
def verify_token(token, key):
    """Return the user name and expiry, in Unix time, of a token of ours; raise jwt.InvalidTokenError for any other.

    Good tokens are cached, since a signature never changes. The expiry is checked on every request.
    """
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):  # base64url without padding (RFC 7515 §2)
        raise jwt.DecodeError
    options = {"require": ["sub", "iat", "exp"]}
    claims = jwt.decode(token, key, algorithms=["HS256"], options=options, leeway=CLOCK_SKEW)
    if isinstance(claims["exp"], str) or isinstance(claims["iat"], str):  # numbers (RFC 7519 §2), but PyJWT takes them
        raise jwt.DecodeError
    return claims["sub"], int(claims["exp"])


def unauthorized(reason, error="invalid_token"):
    """Return the 401 for a bad token, or for a missing one, which gets no error code (RFC 6750 §3.1)."""
    challenge = f'Bearer error="{error}", error_description="{reason}"' if error else "Bearer"
    return HTTPError(401, {"error": "Invalid token", "reason": reason}, www_authenticate=challenge)


def authenticate():
    """Return the user of the request's token, or None if there is no token.

    Raises 401 if it is bad or has expired, 400 if there are two (RFC 6750 §2).
    """
    scheme, _, credentials = request.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    tokens = list(filter(None, request.query.getall("token"))) if request.environ.get("QUERY_STRING") else []
    if scheme.lower() == "bearer":
        tokens.append(credentials.strip())
    if not tokens:
        return None
    if len(tokens) > 1:
        message = "send one token, either as ?token= or in the Authorization header"
        raise HTTPError(400, message, www_authenticate='Bearer error="invalid_request"')
    try:
        username, expiry = verify_token(tokens[0], signing_key())
        if expiry <= time.time():
            raise jwt.ExpiredSignatureError
    except jwt.InvalidTokenError as error:
        raise unauthorized(REASONS.get(type(error), "the token is malformed")) from None
    request.environ["REMOTE_USER"] = username
    return username


def check_role(username):
    """Raise 401 if the user no longer exists, 403 if the user may only read (RFC 6750 §3.1)."""
    user = User.lock_user(username)
    if not user:
        raise unauthorized("the user no longer exists")
    if user.read_only:
        challenge = 'Bearer error="insufficient_scope"'
        raise HTTPError(403, f"user {username} may only read", www_authenticate=challenge)


class JWTPlugin:
    """Requires a token on every route that is not public.

    Routes then get the path's arguments and the query's parameters; those that write also get `by`, the token's user.
    The statement that writes checks this user's role, so the role is looked up here only when a write has failed.
    """

    name, api = "jwt", 2

    def apply(self, callback, route):
        if route.config.get("public"):
            return callback
        reads, known = route.method == "GET", route.config.get("parameters", ())

        def wrapper(**arguments):
            username = authenticate()
            if not (username or (reads and PUBLIC_READ)):
                raise unauthorized("send a token as ?token= or in the Authorization header", error="")
            if reads:
                return callback(**arguments, **parse_query(known))
            try:
                return callback(**arguments, **parse_query(known), by=username)
            except (HTTPError, ValidationError):
                check_role(username)
                raise

        return wrapper


app.install(JWTPlugin())

# -- Login -------------------------------------------------------------------------------------------------------------

MAX_LOGINS = 16  # at a time; their passwords are hashed one after the other
ADDRESS_LIMIT = type(LOGIN_LIMIT)(10 * LOGIN_LIMIT.amount, LOGIN_LIMIT.multiples)
throttle = limits.strategies.MovingWindowRateLimiter(storage)
login_slots, hashing = threading.BoundedSemaphore(MAX_LOGINS), threading.Lock()


def client_network():
    """Return the client's address; of IPv6 its network of 64 bits, all of which a client has (RFC 6177 §2)."""
    address = request.environ.get("REMOTE_ADDR", "")
    with contextlib.suppress(ValueError):
        ip = ipaddress.IPv6Address(address)
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
    return address


def check_throttle(keys):
    """Raise 429 if any key, a limit and what it counts, has reached its limit."""
    for key in keys:
        if not throttle.test(*key):
            seconds = max(1, math.ceil(throttle.get_window_stats(*key).reset_time - time.time()))
            raise HTTPError(429, f"too many failed logins; try again in {seconds} seconds", retry_after=str(seconds))


def check_password(username, password):
    """Raise 400 for a wrong name or password, 429 after too many of them, 503 for too many logins at once.

    One password is hashed at a time, which leaves the other cores and threads to other requests.
    """
    address = client_network()
    keys = ((LOGIN_LIMIT, address, username), (ADDRESS_LIMIT, address))
    check_throttle(keys)
    if not login_slots.acquire(blocking=False):
        raise HTTPError(503, "too many logins at once; try again soon", retry_after="1")
    try:
        with hashing:
            check_throttle(keys)  # others may have failed while this one waited
            if not User.match_user(username, password):
                for key in keys:
                    throttle.hit(*key)
                raise HTTPError(400, "username or password is not correct")
    finally:
        login_slots.release()


def parse_form(body):
    """Return the fields of a form; raise 415 if it is JSON, which curl sends as a form without the header."""
    if body.lstrip().startswith(b"{"):
        raise HTTPError(415, "this is JSON, not a form; send the header Content-Type: application/json")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=20))
    except ValueError:
        raise HTTPError(400, "the body is not a form in UTF-8") from None


@app.post("/login", public=True)
def log_in():
    """Exchange a user name and a password, in JSON or a form (RFC 6749 §4.3.2), for a token, bare or in JSON."""
    content_type, body = read_body(JSON, FORM)
    document = decode_json(body) if content_type == JSON else parse_form(body)
    login = clean_fields(document, "username", "password")
    abort_unless(len(login) == 2, "username and password must be provided")
    check_password(**login)
    request.environ["REMOTE_USER"] = login["username"]  # for the access log
    token = make_token(login["username"])
    response.set_header("Cache-Control", "no-store")  # RFC 6749 §5.1
    if prefers(JSON, over="text/plain") or (content_type == FORM and "grant_type" in document):
        return msgspec.json.encode({"access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS})
    response.content_type = "text/plain"
    return token


# -- Courses -----------------------------------------------------------------------------------------------------------

CHANGED = "the course has changed; GET it again, and send its new ETag in If-Match"
EXISTS = "the course exists, and If-None-Match names it; leave out that header to change it"
EITHER = "Course name or instructor's name must be provided"


def url(path):
    """Return a path as the client sees it, below URL_PREFIX and percent-encoded (RFC 3986 §3.3)."""
    return quote(request.environ.get("SCRIPT_NAME", ""), encoding="latin1") + quote(path, safe="/!$&'()*+,;=:@")


def empty_response(status, path):
    """Return an empty response with the Location of a path."""
    response.status = status
    response.set_header("Location", url(path))
    response.content_type = "text/plain"
    return b""


def make_etag(body):
    """Return the strong validator of a body (RFC 9110 §8.8.1)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(condition, etag):
    """Return whether a header names an ETag, strong or weakened by a compressing proxy, or any with `*`."""
    return condition.strip() == "*" or etag in re.findall(r'"[^"]*"', condition)


def conditional_response(body):
    """Return a body with its ETag, or 304 if the client already has it (RFC 9110 §13.1.2)."""
    etag = make_etag(body)
    response.set_header("ETag", etag)
    if matches(request.environ.get("HTTP_IF_NONE_MATCH", ""), etag):
        response.status = 304
        return b""
    return body


def unknown_code():
    """Return the error for a code of no course: 400 to DELETE, as the tutorial has it, else 404."""
    return HTTPError(400 if request.method == "DELETE" else 404, "Course code is not found in the courses")


def load_course(code):
    """Return a course as JSON; raise the error for an unknown code."""
    course = Course.get_json(code)
    if not course:
        raise unknown_code()
    return course


def check_conditions(code):
    """Return the course that met the conditions, or None if there are none; raise 412 if one fails (RFC 9110 §13.1).

    The write then requires the course to be unchanged, so that nothing can come between.
    """
    if_match = request.environ.get("HTTP_IF_MATCH", "*")
    if_none_match = request.environ.get("HTTP_IF_NONE_MATCH", "")
    if (if_match, if_none_match) == ("*", ""):
        return None
    course = load_course(code)
    etag = make_etag(course)
    if matches(if_none_match, etag):
        raise HTTPError(412, EXISTS)
    if not matches(if_match, etag):
        raise HTTPError(412, CHANGED)
    return msgspec.json.decode(course)


def pagination_links(total, cursor, limit, offset):
    """Return the Link header of a page (RFC 8288), without last and prev if it was reached by a cursor."""
    changes = {"first": {}}
    if total is not None:
        changes["last"] = {"offset": max(total - 1, 0) // limit * limit}
    if total is not None and offset:
        changes["prev"] = {"offset": max(min(offset - limit, changes["last"]["offset"]), 0)}
    if cursor:
        changes["next"] = {"after": cursor}
    query = request.query.decode().items()
    kept = {name: text.strip() for name, text in query if name not in ("after", "offset") and text.strip()}
    path = url("/courses")
    return ", ".join(f'<{path}?{urlencode(kept | change)}>; rel="{rel}"' for rel, change in changes.items())


@app.get(["/courses", "/courses/"], parameters=LIST_PARAMETERS)
def list_courses(sort="id", limit=0, offset=0, after="", **filters):
    """List the courses that the query asks for; by default all, in the order they were added."""
    abort_unless(not after or after.startswith(f"{sort}:"), "after belongs to another sort; send both as in the link")
    total, courses, cursor = Course.get_page(sort=sort, limit=limit, offset=offset, after=after, **filters)
    response.set_header("Vary", "Accept")
    if total is not None:
        response.set_header("X-Total-Count", str(total))
    if limit:
        response.set_header("Link", pagination_links(total, cursor, limit, offset))
    if prefers(CSV, over=JSON):
        response.content_type = "text/csv; charset=utf-8; header=present"
        return conditional_response(models.make_csv(courses))
    return conditional_response(b'{"courses": %b}' % courses)


@app.get("/courses/<code>")
def get_course(code):
    """Return one course."""
    return conditional_response(load_course(code))


def parse_upload(content_type, body):
    """Return the rows of an upload by number, and what the numbers count: lines, rows, or just one course."""
    if content_type == CSV:
        _, _, charset = request.content_type.partition("charset=")
        text = models.decode_text(body, charset.partition(";")[0].strip(' "'))
        return models.read_csv(text, MAX_ROWS), "line"
    document = decode_json(body)
    if isinstance(document, dict) and isinstance(document.get("courses"), list):  # as GET /courses returns it
        document = document["courses"]
    if not isinstance(document, list):
        return {1: document}, "course"
    abort_unless(len(document) <= MAX_ROWS, f"there are more than {MAX_ROWS} rows; send them in several requests")
    return dict(enumerate(document, 1)), "row"


def check_role_last(username, courses):
    """Pass on courses to store, and check the role again in their transaction, which can take seconds."""
    yield from courses
    check_role(username)


@app.post(["/courses", "/courses/"], parameters=["update"])
def add_courses(by, update="false"):
    """Add one course, or many, all or none, from JSON or CSV; with `update`, change those that exist."""
    rows, unit = parse_upload(*read_body(JSON, CSV))
    updates = update.lower() == "true"
    if unit == "course" and not updates:
        return add_course(rows[1], by)
    check_role(by)
    created, updated, _ = Course.add_courses(rows, updates, unit, watch=functools.partial(check_role_last, by))
    response.status = 200 if updates else 201
    return msgspec.json.encode({"created": created} | ({"updated": updated} if updates else {}))


def add_course(row, by):
    """Add one course, a JSON object."""
    code, name, instructor = models.check_row(row)
    try:
        while not Course.add_course(code=code, instructor=instructor, name=name, by=by):
            check_role(by)  # raises 401 or 403, unless the role has changed since
    except peewee.IntegrityError:
        raise HTTPError(409, f"Course code {code} is in the courses already") from None
    return empty_response(201, f"/courses/{code}")


@app.route("/courses/<code>", method=["PUT", "PATCH"])
def update_course(code, by):
    """Set a course's name and instructor, or with PATCH either of them."""
    _, body = read_body(JSON)
    change = clean_fields(decode_json(body), "name", "instructor")
    abort_unless(change or request.method == "PUT", EITHER)
    abort_unless(len(change) == 2 or request.method == "PATCH", models.NAMES_MISSING)
    old = check_conditions(code)
    if not Course.update_course(code, old=old, by=by, **change):
        raise HTTPError(412, CHANGED) if old else unknown_code()
    return empty_response(204, f"/courses/{code}")


@app.delete("/courses/<code>")
def delete_course(code, by):
    """Delete a course."""
    old = check_conditions(code)
    if not Course.delete_course(code, old, by):
        raise HTTPError(412, CHANGED) if old else unknown_code()
    return empty_response(204, "/courses/")


# -- Docs and health ---------------------------------------------------------------------------------------------------

HERE = os.path.dirname(os.path.abspath(__file__))
SWAGGER = importlib.util.find_spec("offapi").submodule_search_locations[0]  # importing it would read 9 MB
FILES = {  # of each path: the folder, the name, the media type
    "/docs": (f"{HERE}/docs", "index.html", "text/html"),
    "/docs/swagger_bundle.js": (SWAGGER, "swagger_bundle.js", "text/javascript"),
    "/docs/swagger_style.css": (SWAGGER, "swagger_style.css", "text/css"),
    "/openapi.yaml": (f"{HERE}/docs", "openapi.yaml", "application/yaml"),  # RFC 9512
}
DOCS_POLICY = (  # Content Security Policy, level 3; the hash is of the script in index.html
    "default-src 'none'; script-src 'self' 'sha256-hZGEg+vp3xPZVTckI9g7si6tuJCXj33kyvSU7zB6xig='; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@app.get(list(FILES), public=True)
def get_file():
    """Return a file of the docs, whole even if Range asks for a part."""
    folder, name, media_type = FILES[request.path]
    request.environ.pop("HTTP_RANGE", None)
    return static_file(name, folder, media_type, etag=False, headers={"Content-Security-Policy": DOCS_POLICY})


@app.get("/", public=True)
def redirect_to_docs():
    """Redirect to the docs."""
    return empty_response(302, "/docs")


@app.get("/health", public=True)
def get_health():
    """Report whether the database can read a course."""
    try:
        Course.select().exists()
    except peewee.PeeweeException as error:
        raise unavailable("the database", error) from None
    return '{"status": "ok"}'


# -- The server and main -----------------------------------------------------------------------------------------------

MAX_CONNECTIONS = 2000
MAX_BLANKS = 1000  # in the headers of a request, for which waitress takes quadratic time
LIMITS = {
    "channel_timeout": 30,  # seconds an idle connection stays open
    "max_request_header_size": 32 * 1024,  # bytes
    "max_request_body_size": MAX_BODY + 1,  # bytes; what reaches this is refused
    "inbuf_overflow": MAX_BODY + 1,  # bytes; more would go to a file, and the disk may be read-only
    "outbuf_overflow": 2**30,
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # trust_proxy() reads the only one
}
LINGER_SECONDS = 0.5  # after SIGTERM, open connections may still send a request
DRAIN_SECONDS = models.BUSY_SECONDS + 3  # and requests have this long to finish; Docker kills after 10
QUICK_PATH = re.compile(r"/courses/[^/]+")
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
access_log = collections.deque()  # lines to write in batches, which takes a tenth off each request (measured)
quick_channels = collections.deque()  # whose requests the main thread is to answer
dispatcher, login_dispatcher = ThreadedTaskDispatcher(), ThreadedTaskDispatcher()
stopping = threading.Event()


class Task(WSGITask):
    def set_close_on_finish(self):
        """Close if the request asks for it; waitress would also close after a 204, which has no length."""
        must_close = self.version == "1.0" or self.request.headers.get("CONNECTION", "").lower() == "close"
        if must_close or self.has_body:
            super().set_close_on_finish()

    def service(self):
        """Respond, and log the request without its query and headers, which can hold a token."""
        try:
            super().service()
        finally:
            environ = self.environ or {"REMOTE_ADDR": self.channel.addr[0]}
            method, path = getattr(self.request, "command", "-"), getattr(self.request, "path", "-")
            level = "DEBUG" if path in ("/health", f"{URL_PREFIX}/health") else "INFO"
            if log.isEnabledFor(getattr(logging, level)):
                begin = time.strftime(TIME_FORMAT, time.gmtime(self.start_time))
                user, path = quote(environ.get("REMOTE_USER", "-")), quote(path, encoding="latin1")
                size = self.content_length if self.has_body and method != "HEAD" else 0
                milliseconds = (time.time() - self.start_time) * 1000
                client, status = environ["REMOTE_ADDR"], f"{self.status[:3]} {size or 0} bytes {milliseconds:.1f} ms"
                access_log.append(f"{begin} {level} {client} {user} {method} {path} {status}")


class RefusalTask(Task):
    complete = True  # as waitress' own ErrorTask

    def execute(self):
        """Respond with JSON to a request that waitress refuses."""
        error = self.request.error
        body = msgspec.json.encode({"error": f"{error.reason}: {error.body}"})
        self.status, self.content_length = f"{error.code} {error.reason}", len(body)
        self.response_headers += [("Content-Type", "application/json"), *HEADERS.items()]
        self.set_close_on_finish()
        self.write(body)


class Parser(HTTPRequestParser):
    def parse_header(self, header_plus):
        """Refuse headers that would take too long, or that a proxy could read differently (RFC 9112 §6.1)."""
        if header_plus.count(b" ") + header_plus.count(b"\t") > MAX_BLANKS:
            raise ParsingError("there are too many blanks in the headers")
        try:
            super().parse_header(header_plus)
        except ValueError:
            raise ParsingError("there is a bad number or address in the headers") from None
        if b"transfer-encoding" in header_plus.lower() and not (self.chunked and "CONTENT_LENGTH" not in self.headers):
            raise ParsingError("Transfer-Encoding must be chunked and without Content-Length, in HTTP/1.1")


class Channel(HTTPChannel):
    task_class, error_task_class, parser_class = Task, RefusalTask, Parser


class Server(TcpWSGIServer):
    """Leaves one indexed read of SQLite to the main thread, which reads all requests, and the rest to other threads.

    Handing such a request, and the interpreter's lock, to another thread takes longer than the request (measured).
    Logins, which wait for each other, have threads of their own.
    """

    channel_class = Channel

    def set_socket_options(self, connection):
        """Let Linux hang up on a client that reads nothing; waitress would wait while it has requests."""
        super().set_socket_options(connection)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * self.adj.channel_timeout)

    def add_task(self, channel):
        request = channel.requests[0]
        if stopping.is_set():
            request.headers["CONNECTION"] = "close"
        path = "" if request.error else request.path.removeprefix(URL_PREFIX)
        is_quick = QUICK_PATH.fullmatch(path) and request.command == "GET" and models.READS_NEVER_WAIT
        if is_quick and threading.current_thread() is threading.main_thread():
            quick_channels.append(channel)
        elif path == "/login":
            login_dispatcher.add_task(channel)
        else:
            super().add_task(channel)


def poll(sockets, seconds):
    """Serve what comes within this time, and write the access log."""
    wasyncore.loop(seconds, use_poll=True, map=sockets, count=1)
    while quick_channels:
        try:
            quick_channels.popleft().service()
        except Exception:
            log.exception("unexpected error")  # as waitress' threads do
    lines = [access_log.popleft() for _ in range(len(access_log))]
    if lines:
        with contextlib.suppress(OSError):  # a full disk or a closed pipe must not stop the service
            print(*lines, sep="\n", flush=True)


def serve(servers, sockets):
    """Serve until SIGTERM or Ctrl-C; then answer what has been accepted, and close each connection once it is idle.

    A second signal stops at once.
    """

    def stop(number, _frame):
        signal.signal(number, signal.SIG_DFL)
        stopping.set()
        servers[0].trigger.pull_trigger()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(HOST, f"[{HOST}]" if ":" in HOST else HOST)  # noqa: S104
    address = f"http://{host}:{servers[0].effective_port}{URL_PREFIX}"  # that a browser on this machine takes
    log.info("Serving %s on %s; press Ctrl-C to stop", models.DATABASE_NAME, address)
    while not stopping.is_set():
        poll(sockets, 1)
    for server in servers:
        for _ in range(server.adj.backlog):
            server.handle_accept()
        wasyncore.dispatcher.close(server)  # not server.close(), after which nothing could wake the loop
    start, channels = time.monotonic(), True
    while channels and time.monotonic() - start < DRAIN_SECONDS:
        poll(sockets, 0.05)
        channels = [channel for server in servers for channel in server.active_channels.values()]
        for channel in channels:
            is_idle = not (channel.request or channel.requests or channel.total_outbufs_len)
            channel.will_close |= is_idle and time.monotonic() - start > LINGER_SECONDS
    poll(sockets, 0)  # writes the last lines of the log
    log.info("Stopped")


def connection_limit():
    """Allow an open file for each connection; return how many connections fit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + 100  # the database and the docs need some
    files = hard if 0 < hard < wanted else wanted  # "unlimited" is a negative number, or one that macOS does not take
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    return files - 100


def prepare():
    """Prepare the database and the key, and log what an operator should know; exit if the database cannot be used."""
    with models.exit_if_unusable():
        models.init_db()
        models.limit_statements()  # from here on, the database is used as requests use it
        if models.IN_MEMORY:
            seed.add_dummy_data()
        if HOST not in ("127.0.0.1", "::1", "localhost") and User.match_user(*seed.DUMMY_USER):
            log.warning("everyone knows the password of user faisal; change it: python seed.py user faisal")
        if not User.select().exists():
            log.info("there is no user yet; run python seed.py")
        signing_key()


def main():
    """Serve the app with waitress."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=VERSION)
    parser.parse_args()
    logging.Formatter.converter = time.gmtime
    log_format = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(stream=sys.stdout, level=LOG_LEVEL, format=log_format, datefmt=TIME_FORMAT)
    logging.getLogger("peewee").setLevel("WARNING")  # its DEBUG shows password hashes and the key
    logging.getLogger("waitress.queue").setLevel("ERROR")  # else a line for each request that waits
    prepare()
    dispatcher.set_thread_count(THREADS)
    login_dispatcher.set_thread_count(MAX_LOGINS + 1)  # one more, to refuse the others
    sockets = {}
    try:
        adj = Adjustments(host=HOST, port=PORT, url_prefix=URL_PREFIX, connection_limit=connection_limit(), **LIMITS)
        servers = [Server(app, sockets, dispatcher=dispatcher, adj=adj, sockinfo=info) for info in adj.listen]
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen on {HOST}:{PORT}: {error}; see HOST and PORT")
    serve(servers, sockets)


if __name__ == "__main__":
    main()
else:  # another WSGI server
    models.limit_statements()
