"""The course API: a catalogue of courses over HTTP, behind a login.

    python seed.py          # adds the dummy data, once
    python course_api.py    # serves on http://127.0.0.1:5000 until Ctrl-C or SIGTERM

Any other WSGI server can serve it as `course_api:app`, once seed.py has prepared the database.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib.util
import ipaddress
import logging
import math
import pathlib
import re
import threading
import time
from urllib.parse import parse_qsl, quote, urlencode

import bottle
import jwt
import limits
import msgspec
import peewee
from bottle import HTTPError, HTTPResponse, request, response

import course_files
import database
import logs
import models
import server
import settings
from database import db
from fields import Text, ValidationError, WholeNumber, to_nfc
from models import CHANGEABLE, FIELDS, KEY_PREFIX, SORTS, ApiKey, Course, Cursor, Mode, User, Writer, join_words
from records import CSV, JSON, NDJSON, XLSX

VERSION = "3.0.0"
FORM = "application/x-www-form-urlencoded"
MERGE_PATCH = "application/merge-patch+json"  # RFC 7396: members that are given replace the course's
FILTERS = [name for name, field in FIELDS.items() if field.filter]
log = logging.getLogger("course_api")
bottle.Response.default_content_type = JSON
# A request passes the hooks and the plugins below, in the order of `plugins`, and then its route, which gets from them
# who writes, as `by`, and the query's parameters. What refuses it raises HTTPError, which render_error() makes JSON.
app = bottle.Bottle()
app.uninstall(True)  # Bottle's own plugins, for dicts and templates: each route returns its JSON as text

# -- Courses -----------------------------------------------------------------------------------------------------------


FORMATS = {  # of each format of a list: its media type, and the function that makes it of a JSON array
    "json": (JSON, lambda courses: b'{"courses": %b}' % courses),
    "csv": ("text/csv; charset=utf-8; header=present", course_files.make_csv),
    "xlsx": (XLSX, course_files.make_xlsx),
}


@app.get(["/courses", "/courses/"], parameters=["q", "prefix", *FILTERS, "sort", "limit", "offset", "after", "format"])
def list_courses(q="", prefix="", sort="id", limit=0, offset=0, after=None, format="", **filters):  # noqa: A002
    """List the courses that the query asks for; by default all, in the order they were added."""
    if after and after.sort != sort:
        raise HTTPError(400, "after belongs to another sort; send both as in the link")
    total, courses, cursor = Course.get_page(q, prefix, sort, limit, offset, after, **filters)
    set_list_headers(total, cursor, limit, offset)
    if format:
        response.set_header("Content-Disposition", f'attachment; filename="courses.{format}"')
    response.content_type, make_list = FORMATS[format or preferred_format()]
    return conditional_response(make_list(courses))


@app.get("/courses/<code>")
def get_course(code):
    """Return one course."""
    return conditional_response(load_course(code))


UPLOAD = ["header", "repeats", "sheet", "skip_invalid", "dry_run"]  # besides the fields, which name their columns


@app.post(["/courses", "/courses/"], columns=[*FIELDS], parameters=["update", *UPLOAD])
def add_courses(by, update=False, skip_invalid=False, dry_run=False, **options):
    """Add one course, or many, all or none, from a list in a file; with `update`, change those that exist."""
    if "HTTP_IF_MATCH" in request.environ:
        raise HTTPError(400, "If-Match has no meaning here; leave it out, or send it with PUT or PATCH to a course")
    content_type, body = read_body(JSON, CSV, NDJSON, XLSX)
    is_plain = not (update or skip_invalid or dry_run or FIELDS.keys() & options)
    course = parse_course(content_type, body) if is_plain else None
    if course:
        return add_course(course, by)
    reading = read_upload(body, options)
    if is_plain and reading.unit == "course":
        return add_course(reading.document, by)
    mode = Mode.UPDATE if update else Mode.ADD
    stored = course_files.store_courses(reading, mode, by=by, skip_invalid=skip_invalid, dry_run=dry_run)
    if not stored:
        raise role_error(by) or role_changed()
    response.status = 200 if update or dry_run else 201
    return describe_upload(reading, stored, ["created", "updated"] if update else ["created"], dry_run)


@app.put(["/courses", "/courses/"], columns=[*FIELDS], parameters=UPLOAD)
def replace_courses(by, skip_invalid=False, dry_run=False, **options):
    """Make a list in a file the whole catalogue: add, change and delete courses, all or none."""
    _, body = read_body(JSON, CSV, NDJSON, XLSX)
    reading, old = read_upload(body, options), load_list_for_conditions()
    how = {"by": by, "old": old, "skip_invalid": skip_invalid, "dry_run": dry_run}
    stored = course_files.store_courses(reading, Mode.REPLACE, **how)
    if not stored:
        raise role_error(by) or (HTTPError(412, LIST_CHANGED) if old else role_changed())
    return describe_upload(reading, stored, ["created", "updated", "deleted", "unchanged"], dry_run)


def add_course(document, by):
    """Add one course, a JSON object."""
    course = models.clean_course(document)
    try:
        stored = write_course(course["code"], Course.insert_course, course, by)
    except peewee.IntegrityError as error:
        if not db.is_duplicate(error, "courses", "code"):
            raise
        raise HTTPError(409, f"Course code {course['code']} is in the courses already") from None
    if stored is None:
        raise role_error(by) or role_changed()
    return written_response(201, course["code"], stored)


@app.put("/courses/<code>")
def replace_course(code, by):
    """Set a course's fields; those that have a default may be left out, and then stay as they are."""
    change = parse_change(code, JSON)
    if not all(name in change for name in models.REQUIRED):
        raise HTTPError(400, models.missing("and"))
    return change_course(code, change, by)


@app.route("/courses/<code>", method="PATCH")
def update_course(code, by):
    """Set one or more of a course's fields."""
    change = parse_change(code, JSON, MERGE_PATCH)
    if not change:
        raise HTTPError(400, models.missing("or"))
    return change_course(code, change, by)


def change_course(code, change, by):
    """Change a course that meets the request's conditions."""
    old = load_for_conditions(code)
    stored = write_course(code, Course.change_course, code, change, old, by)
    if stored is None:
        raise refused_write(by, old)
    return written_response(200 if stored else 204, code, stored)


@app.delete("/courses/<code>")
def delete_course(code, by):
    """Delete a course."""
    old = load_for_conditions(code)
    if not Course.delete_course(code, old, by):
        raise refused_write(by, old)
    return empty_response(204, "/courses/")


# -- Login -------------------------------------------------------------------------------------------------------------


@app.post("/token", public=True)
def get_token():
    """Exchange a user name and a password for a token in JSON (RFC 6749 §5.1)."""
    token, _ = exchange_password()
    return render_token(token)


@app.post("/login", public=True)
def log_in():
    """Exchange a user name and a password for a bare token, or for JSON where that is preferred."""
    token, is_oauth2 = exchange_password()
    if is_oauth2 or preferred("text/plain", JSON) == JSON:
        return render_token(token)
    response.content_type = "text/plain"
    return token


@app.put("/password")
def change_password(by):
    """Change the user's own password; what was logged in before must log in again to write."""
    if by.key:
        raise insufficient_scope("a key cannot change the password; log in, and send the token")
    _, body = read_body(JSON)
    old, new = parse_passwords(parse_object(body))
    user = check_password(by.username, old, "old_password is not correct")
    with hashing:
        if by.stamp not in (None, user.stamp) or not user.set_password(new):
            raise new_password()
    response.status, response.content_type = 204, "text/plain"
    return b""


# -- Docs and health ---------------------------------------------------------------------------------------------------

DOCS = pathlib.Path(__file__).with_name("docs")
SWAGGER = importlib.util.find_spec("offapi").submodule_search_locations[0]  # importing it would read 9 MB
FILES = {  # of each path: the folder, the name, the media type
    "/docs": (DOCS, "index.html", "text/html; charset=UTF-8"),
    "/docs/docs.css": (DOCS, "docs.css", "text/css; charset=UTF-8"),
    "/docs/docs.js": (DOCS, "docs.js", "text/javascript; charset=UTF-8"),
    "/docs/swagger_bundle.js": (SWAGGER, "swagger_bundle.js", "text/javascript; charset=UTF-8"),
    "/docs/swagger_style.css": (SWAGGER, "swagger_style.css", "text/css; charset=UTF-8"),
    "/openapi.yaml": (DOCS, "openapi.yaml", "application/yaml"),  # RFC 9512
}
DOCS_POLICY = (  # Content Security Policy, level 3
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@app.get(list(FILES), public=True)
def get_file():
    """Return a file of the docs."""
    _, _, response.content_type = FILES[request.path]
    response.set_header("Content-Security-Policy", DOCS_POLICY)
    return conditional_response(*read_file(request.path))


@functools.cache
def read_file(path):
    """Return a file of the docs and its ETag; to hash the largest takes a millisecond (measured)."""
    folder, name, _ = FILES[path]
    body = pathlib.Path(folder, name).read_bytes()
    return body, make_etag(body)


@app.get("/", public=True)
def redirect_to_docs():
    """Redirect to the docs."""
    return empty_response(302, "/docs")


@app.get("/health", public=True)
def get_health():
    """Report whether the database can read a course, and the login limit's storage can be asked."""
    try:
        Course.select().exists()
    except peewee.PeeweeException as error:
        db.discard()
        raise unavailable("the database", database.describe(error)) from None
    settings.LIMIT_STORAGE.get("health")
    return '{"status": "ok"}'


# -- Tokens and the JWT plugin -----------------------------------------------------------------------------------------

REASONS = {  # PyJWT's own messages can quote the token, and must not reach a header
    jwt.ExpiredSignatureError: "the token has expired; log in again",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAlgorithmError: "the token is not signed with HS256",
    jwt.InvalidSignatureError: "the token is not signed with this API's key",
    jwt.MissingRequiredClaimError: "the token lacks sub, iat or exp",
}
NOT_GIVEN = "send a token as ?token= or in the Authorization header"
HOW_TO_SEND = "send the header as Authorization: Bearer TOKEN, with a token from POST /token"
NO_KEY = "there is no such key, or it has expired"
CLOCK_SKEW = 5  # seconds that the clocks of several machines may differ


class JWTPlugin:
    """Requires a token on every route that is not public; a route that writes gets the Writer as the argument `by`."""

    name, api = "jwt", 2

    def apply(self, callback, route):
        if route.config.get("public"):
            return callback
        reads = route.method == "GET"

        def wrapper(**arguments):
            by = authenticate(request)
            if not (by or (reads and settings.PUBLIC_READ)):
                raise unauthorized(HOW_TO_SEND if "HTTP_AUTHORIZATION" in request.environ else NOT_GIVEN, error="")
            return callback(**arguments) if reads else callback(**arguments, by=by)

        return wrapper


def authenticate(request):
    """Return the Writer of a request's token or key, or None if there is neither.

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
    by = find_key(tokens[0]) if tokens[0].startswith(KEY_PREFIX) else read_token(tokens[0])
    request.environ["REMOTE_USER"] = by.username
    return by


def find_key(key):
    """Return the Writer of a key; raise 401 if there is no such key, or it has expired."""
    by = ApiKey.get_writer(key)
    if not by:
        raise unauthorized(NO_KEY)
    return by


def read_token(token):
    """Return the Writer of a token; raise 401 if it is bad or has expired."""
    try:
        by, expiry = verify_token(token, signing_key())
        if expiry <= time.time():
            raise jwt.ExpiredSignatureError
    except jwt.InvalidTokenError as error:
        raise unauthorized(REASONS.get(type(error), "the token is malformed")) from None
    return by


@functools.lru_cache(maxsize=1024)
def verify_token(token, key):
    """Return the Writer and the expiry, in Unix time, of a token of ours; raise jwt.InvalidTokenError for any other.

    Good tokens are cached, since a signature never changes. The expiry is checked on every request.
    """
    if not re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+", token, re.ASCII):  # base64url without padding (RFC 7515 §2)
        raise jwt.DecodeError
    options = {"require": ["sub", "iat", "exp"]}
    claims = jwt.decode(token, key, algorithms=["HS256"], options=options, leeway=CLOCK_SKEW)
    if isinstance(claims["exp"], str) or isinstance(claims["iat"], str):  # numbers (RFC 7519 §2), but PyJWT takes them
        raise jwt.DecodeError
    if not isinstance(claims.get("stamp", ""), str):
        raise jwt.DecodeError
    return Writer(claims["sub"], claims.get("stamp")), int(claims["exp"])


def make_token(username, stamp):
    """Return a token (RFC 7519) for a user that expires in TOKEN_SECONDS, or ends when the user's stamp changes."""
    signing_key.cache_clear()  # a restored backup has a key of its own
    now = int(time.time())
    claims = {"sub": username, "stamp": stamp, "iat": now, "exp": now + settings.TOKEN_SECONDS}
    return jwt.encode(claims, signing_key(), algorithm="HS256")


@functools.cache
def signing_key():
    """Return the key that signs the tokens: SECRET_KEY, or the one in the database."""
    return settings.SECRET_KEY or models.SigningKey.get_key().encode()


def unauthorized(reason, error="invalid_token"):
    """Return the 401 for a bad token, or for a missing one, which gets no error code (RFC 6750 §3.1)."""
    challenge = f'Bearer error="{error}", error_description="{reason}"' if error else "Bearer"
    return HTTPError(401, {"error": "Invalid token", "reason": reason}, www_authenticate=challenge)


def role_error(by):
    """Return why a write did nothing: 401 if the user, password or key is gone, 403 if read-only (RFC 6750 §3.1)."""
    user = User.get_or_none(User.username == by.username)
    if not user:
        return unauthorized("the user no longer exists")
    if by.stamp not in (None, user.stamp):
        return new_password()
    if user.read_only:
        return insufficient_scope(f"user {by.username} may only read")
    return key_error(by.key) if by.key else None


def key_error(hashed):
    """Return why a key's write did nothing, or None if it may write."""
    key = ApiKey.get_or_none(ApiKey.hash == hashed)
    if not key or models.has_ended(key.expires):
        return unauthorized(NO_KEY)
    return insufficient_scope(f"key {key.label} may only read") if key.read_only else None


def new_password():
    """Return the error for a token that was made before the user's password."""
    return unauthorized("the user has a new password; log in again")


def insufficient_scope(message):
    """Return the 403 for a good token or key that may not do this (RFC 6750 §3.1)."""
    return HTTPError(403, message, www_authenticate='Bearer error="insufficient_scope"')


def role_changed():
    """Return the error for a write that did nothing although its user may write again by now."""
    return HTTPError(503, "the user's role has just changed; send the request again", retry_after="1")


# -- Passwords ---------------------------------------------------------------------------------------------------------

MAX_LOGINS = 16  # at a time; their passwords are hashed one after the other
# For one address, whatever the names: ten times LOGIN_LIMIT, which counts by name and address.
ADDRESS_LIMIT = type(settings.LOGIN_LIMIT)(10 * settings.LOGIN_LIMIT.amount, settings.LOGIN_LIMIT.multiples)
throttle = limits.strategies.MovingWindowRateLimiter(settings.LIMIT_STORAGE)
login_slots, hashing = threading.BoundedSemaphore(MAX_LOGINS), threading.Lock()


def exchange_password():
    """Return a token for the user name and the password of the body, and whether an OAuth2 form asks for it.

    The body is JSON or a form (RFC 6749 §4.3.2).
    """
    content_type, body = read_body(JSON, FORM)
    document = parse_object(body) if content_type == JSON else parse_form(body)
    username, password = parse_login(document)
    user = check_password(username, password, "username or password is not correct")
    request.environ["REMOTE_USER"] = username  # for the access log
    response.set_header("Cache-Control", "no-store")  # RFC 6749 §5.1
    return make_token(username, user.stamp), content_type == FORM and "grant_type" in document


def render_token(token):
    """Return a token in JSON, as OAuth2 has it."""
    return msgspec.json.encode({"access_token": token, "token_type": "Bearer", "expires_in": settings.TOKEN_SECONDS})


def parse_login(document):
    """Return the user name and the password of a login; raise 400 if one is missing."""
    fields = {"username": User.username, "password": User.password}
    login = [field.clean(document[name]) for name, field in fields.items() if name in document]
    if len(login) < 2:
        raise HTTPError(400, "username and password must be provided")
    return login


def parse_passwords(document):
    """Return the old and the new password of a change; raise 400 for a missing or bad one."""
    if not {"old_password", "new_password"} <= document.keys():
        raise HTTPError(400, "old_password and new_password must be provided")
    old, new = (User.password.clean(document[name]) for name in ("old_password", "new_password"))
    if len(new) < models.MIN_PASSWORD:
        raise HTTPError(400, f"new_password must be {models.MIN_PASSWORD} characters or more")
    return old, new


def check_password(username, password, error):
    """Return the user; raise 400 for a wrong name or password, 429 after too many of them, 503 for too many at once.

    One password is hashed at a time, which leaves the other cores and threads to other requests.
    """
    address = client_network()
    counters = ((settings.LOGIN_LIMIT, address, username), (ADDRESS_LIMIT, address))
    check_throttle(counters, username)
    if not login_slots.acquire(blocking=False):
        raise HTTPError(503, "too many logins at once; try again soon", retry_after="1")
    try:
        with hashing:
            check_throttle(counters, username)  # others may have failed while this one waited
            user = User.log_in(username, password)
            if not user:
                for counter in counters:
                    throttle.hit(*counter)
                log_failure("failed login", username)
                raise HTTPError(400, error)
            return user
    finally:
        login_slots.release()


def check_throttle(counters, username):
    """Raise 429 if any counter, a limit and what it counts, has reached its limit."""
    for counter in counters:
        if not throttle.test(*counter):
            log_failure("too many failed logins", username)
            seconds = max(1, math.ceil(throttle.get_window_stats(*counter).reset_time - time.time()))
            raise HTTPError(429, f"too many failed logins; try again in {seconds} seconds", retry_after=str(seconds))


def log_failure(event, username):
    """Log what a login came to, for fail2ban; the name is percent-encoded, so that it cannot forge a line."""
    log.warning("%s as %s from %s", event, quote(username, safe=""), request.environ.get("REMOTE_ADDR", "-"))


def client_network():
    """Return the client's address; of IPv6 its network of 64 bits, all of which a client has (RFC 6177 §2)."""
    address = request.environ.get("REMOTE_ADDR", "")
    with contextlib.suppress(ValueError):
        ip = ipaddress.IPv6Address(address)
        return str(ip.ipv4_mapped or ipaddress.IPv6Network((ip, 64), strict=False))
    return address


# -- Queries and bodies ------------------------------------------------------------------------------------------------

MAX_BODY = 64 * 1024  # bytes, of what is no upload
MAX_UPLOAD = 16 * 1024 * 1024  # bytes
MAX_UPLOADS = 8  # large uploads that arrive or wait; each is held in memory
MAX_ROWS = 400_000  # courses in an upload
upload_slots = threading.BoundedSemaphore(2)  # for large uploads, which take up to 450 MiB while they are handled

TEXT, PREFIX = Text(1, FIELDS["name"].maximum), Text(1, FIELDS["code"].maximum)


def one_of(*choices):
    """Return a function that returns a text if it is one of the choices, and raises ValueError for any other."""
    return lambda text: choices[choices.index(text.strip())]


def parse_prefix(text):
    """Return the beginning of a code; a blank at its end counts, since a code can have one there."""
    beginning = to_nfc(text.lstrip(), PREFIX.maximum)
    if not PREFIX.pattern.fullmatch(beginning):
        raise ValueError(text)
    return beginning


def make_filter(field):
    """Return how the parameter that filters by a field is parsed, and its rule."""
    field = Text(1, field.maximum) if isinstance(field, Text) else field  # a blank parameter counts as not given
    return field.parse, field.rule


def parse_flag(text):
    """Return the value of a parameter that is true or false; raise ValueError for any other text."""
    return one_of("false", "true")(text.lower()) == "true"


PARAMETERS = {  # of each query parameter: a function that returns its value or raises ValueError, and the rule in words
    "q": (TEXT.parse, TEXT.rule),
    "prefix": (parse_prefix, PREFIX.rule),
    **{name: make_filter(FIELDS[name]) for name in FILTERS},
    "sort": (one_of(*SORTS), f"{join_words(['id', *FIELDS], 'or')}, with - in front for descending order"),
    "limit": (WholeNumber(1, 1000).parse, "a whole number from 1 to 1000"),
    "offset": (WholeNumber(0, 10**12).parse, "a whole number, 0 or more"),
    "after": (Cursor.parse, "copied from the link to the next page"),
    "format": (one_of(*FORMATS), join_words(FORMATS, "or")),
    "header": (str, "the names of the columns, separated by commas"),
    "repeats": (one_of(*course_files.REPEATS), join_words(course_files.REPEATS, "or")),
    "sheet": (str, "the title of a sheet"),
    **dict.fromkeys(("update", "skip_invalid", "dry_run"), (parse_flag, "true or false")),
}


class QueryPlugin:
    """Passes the query's parameters, of those that the route names, as arguments."""

    name, api = "query", 2

    def apply(self, callback, route):
        if route.config.get("public"):
            return callback
        known, columns = route.config.get("parameters", ()), route.config.get("columns", ())

        def wrapper(**arguments):
            if request.environ.get("QUERY_STRING"):
                arguments |= parse_query(known, columns)
            return callback(**arguments)

        return wrapper


def parse_query(known, columns):
    """Return the query's parameters that are not blank; raise 400 for an unknown, repeated or invalid one.

    Those that name `columns` may be repeated, and are lists.
    """
    params = {}
    for name, text in decode_query():
        if name in columns:
            if text.strip():
                params.setdefault(name, []).append(text)
            continue
        if name not in known:
            known = [*columns, *known]
            use = f"use {', '.join(known)}" if known else "this path takes none but token"
            raise HTTPError(400, f"there is no parameter {name}; {use}")
        if name in params:
            raise HTTPError(400, f"the parameter {name} is repeated; send it once")
        parse, rule = PARAMETERS[name]
        try:
            if text.strip():
                params[name] = parse(text)  # a cursor and a prefix may end in a blank
        except ValueError:
            raise HTTPError(400, f"{name} must be {rule}") from None
    return params


def decode_query():
    """Return the names and texts of the query's parameters, without the token, and `_`, which keeps caches out."""
    try:
        return [(name, text) for name, text in request.query.decode().allitems() if name not in ("token", "_")]
    except UnicodeDecodeError:
        raise HTTPError(400, "the query must be percent-encoded UTF-8") from None


def body_limit(environ):
    """Return how many bytes the body of a request may have: MAX_UPLOAD only for an upload with a good token."""
    if is_upload(environ):
        with contextlib.suppress(Exception), db.for_request():  # whatever it is, the request meets it again
            if authenticate(bottle.BaseRequest(environ)):
                return MAX_UPLOAD
    return MAX_BODY


def is_upload(environ):
    """Return whether a request stores courses from a file."""
    return environ["REQUEST_METHOD"] in ("POST", "PUT") and environ["PATH_INFO"] in ("/courses", "/courses/")


def refuse_large_body(callback):
    """Refuse a large body before it is read, and before the token is checked where no token would help."""

    def wrapper(**arguments):
        environ = request.environ
        try:
            is_large = "CONTENT_LENGTH" in environ and request.content_length > MAX_BODY
        except ValueError:
            raise HTTPError(400, "Content-Length must be a whole number") from None
        if is_large and not is_upload(environ):
            raise too_large(MAX_BODY)
        return callback(**arguments)

    return wrapper


class UploadPlugin:
    """Checks the role before a large upload is read, and handles few at once.

    One of unknown length, in chunks that the server has not decoded, counts as large.
    """

    name, api = "upload", 2

    def apply(self, callback, route):
        if not is_upload({"REQUEST_METHOD": route.method, "PATH_INFO": route.rule}):
            return callback

        def wrapper(by, **arguments):
            if 0 <= request.content_length <= MAX_BODY:
                return callback(by=by, **arguments)
            if error := role_error(by):
                raise error
            if not upload_slots.acquire(blocking=False):
                raise HTTPError(503, "too many uploads at once; try again soon", retry_after="1")
            try:
                return callback(by=by, **arguments)
            finally:
                upload_slots.release()

        return wrapper


def too_large(limit):
    """Return the error for a body of more than `limit` bytes."""
    if limit == MAX_UPLOAD:
        return HTTPError(413, f"the body is larger than {limit // 1024**2} MiB; send the courses in several requests")
    return HTTPError(413, f"the body is larger than {limit // 1024} KiB")


def read_body(*content_types):
    """Return the body's content type, one of these, and its bytes.

    Raises 413 for a body that is too large, 415 for another type or a Content-Encoding, 400 for a truncated body.
    """
    largest = MAX_UPLOAD if is_upload(request.environ) else MAX_BODY
    if request.content_length > largest:
        raise too_large(largest)
    content_type = request.content_type.partition(";")[0].strip()
    if content_type not in content_types:
        types = join_words(content_types, "or")
        raise HTTPError(415, f"send the header Content-Type: {types}, and the body in that form")
    if request.environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() != "identity":  # RFC 9110 §8.4
        raise HTTPError(415, "send the body uncompressed, without Content-Encoding", accept_encoding="identity")
    limit, has_end = largest + 1, request.environ.get("wsgi.input_terminated")  # by a server that decodes chunks
    try:
        length = request.content_length  # -1 if unknown, as with chunks
        body = request.environ["wsgi.input"].read(limit if has_end else min(max(length, 0), limit))
    except Exception:  # noqa: BLE001 (each server raises its own for a bad chunk or a client that has gone)
        raise HTTPError(400, "the body cannot be read, or is cut short") from None
    if len(body) == limit:
        raise too_large(largest)
    if len(body) < length:
        raise HTTPError(400, "the body is shorter than its Content-Length")
    return content_type, body


def decode_json(body):
    """Return the value of a JSON body; raise 400 if it is not JSON in UTF-8."""
    try:
        return msgspec.json.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise HTTPError(400, "the body is not UTF-8 text") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise HTTPError(400, f"the body is not JSON: {error}") from None


def parse_object(body):
    """Return the object of a JSON body; raise 400 for any other value."""
    document = decode_json(body)
    if not isinstance(document, dict):
        raise HTTPError(400, "the body must be a JSON object")
    return document


def parse_form(body):
    """Return the fields of a form; raise 415 if it is JSON, which curl sends as a form without the header."""
    if body.lstrip().startswith(b"{"):
        raise HTTPError(415, "this is JSON, not a form; send the header Content-Type: application/json")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=20))
    except ValueError:
        raise HTTPError(400, "the body is not a form in UTF-8") from None


def parse_change(code, *content_types):
    """Return the fields that a PUT or PATCH gives, checked; raise 400 if it gives another code than the path's."""
    _, body = read_body(*content_types)
    document = parse_object(body)
    change = models.clean_fields(document, CHANGEABLE)
    if change and normalize_code(document.get("code", code)) != normalize_code(code):
        raise HTTPError(400, f"the code of a course cannot be changed; send {code} as in the path, or leave it out")
    return change


def normalize_code(code):
    """Return a code as it is compared: trimmed, and in Unicode's form NFC. What is no text stays."""
    return to_nfc(code.strip(), FIELDS["code"].maximum) if isinstance(code, str) else code


def parse_course(content_type, body):
    """Return the object of a JSON body that is plainly one course; the reader of lists takes twice as long."""
    if content_type != JSON or len(body) > MAX_BODY or not body.lstrip().startswith(b"{"):
        return None
    document = decode_json(body)
    has_lists = any(isinstance(value, list | dict) for value in document.values())
    is_list = isinstance(document.get("courses"), list) or (has_lists and "code" not in document)
    return None if is_list else document


def read_upload(body, given):
    """Return the course_files.Reading of a body, read with the options that the query gives."""
    options = course_files.make_options(given, over_http=True, max_rows=MAX_ROWS)
    return course_files.read_courses(body, options, request.content_type)


# -- Conditions and responses ------------------------------------------------------------------------------------------

CHANGED = "the course has changed; GET it again, and send its new ETag in If-Match"
LIST_CHANGED = "the list has changed; GET /courses again, and send its new ETag in If-Match"
EXISTS = "the course exists, and If-None-Match names it; leave out that header to change it"


def make_etag(body):
    """Return the strong validator of a body (RFC 9110 §8.8.1)."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def matches(condition, etag):
    """Return whether a header names an ETag by its digits, whatever a proxy made of the rest, or any with `*`."""
    return etag.strip('"') in condition or condition.strip() == "*"


def conditional_response(body, etag=None):
    """Return a body with its ETag, or 304 if the client already has it (RFC 9110 §13.1.2)."""
    etag = etag or make_etag(body)
    response.set_header("ETag", etag)
    if matches(request.environ.get("HTTP_IF_NONE_MATCH", ""), etag):
        response.status = 304
        return b""
    return body


def load_course(code):
    """Return a course as JSON; raise the error for an unknown code."""
    course = Course.get_json(code)
    if not course:
        raise unknown_code()
    return course


def load_list_for_conditions():
    """Return the list as JSON if it met the conditions, else as load_for_conditions(); its ETag is of JSON or CSV."""
    if not has_conditions():
        return None
    _, courses, _ = Course.get_page()
    check_conditions(LIST_CHANGED, *(FORMATS[name][1](courses) for name in ("json", "csv")))
    return courses


def load_for_conditions(code):
    """Return the course that met the conditions, or None if there are none; raise 412 if one fails.

    The write then requires the course to be unchanged, so that nothing can come between.
    """
    if not has_conditions():
        return None
    course = load_course(code)
    check_conditions(CHANGED, course)
    return msgspec.json.decode(course)


def has_conditions():
    """Return whether the request has conditions that something could fail to meet."""
    environ = request.environ
    return (environ.get("HTTP_IF_MATCH", "*"), environ.get("HTTP_IF_NONE_MATCH", "")) != ("*", "")


def check_conditions(changed, *bodies):
    """Raise 412 unless one of these bodies meets the conditions (RFC 9110 §13.1); `changed` says so of If-Match."""
    etags = [make_etag(body) for body in bodies]
    if any(matches(request.environ.get("HTTP_IF_NONE_MATCH", ""), etag) for etag in etags):
        raise HTTPError(412, EXISTS)
    if not any(matches(request.environ.get("HTTP_IF_MATCH", "*"), etag) for etag in etags):
        raise HTTPError(412, changed)


def write_course(code, write, *arguments):
    """Call a function that writes a course; return the course in JSON if Prefer asks for it, else b"".

    Returns None if the function wrote nothing.
    """
    if "HTTP_PREFER" in request.environ and prefers_course():
        return Course.write_and_read(code, write, *arguments)
    return b"" if write(*arguments) else None


def prefers_course():
    """Return whether Prefer asks for the course that is written (RFC 7240 §4.2); the first answer counts."""
    answers = re.findall(r"(?:^|,)\s*return\s*=\s*\"?([\w-]*)", request.environ["HTTP_PREFER"].lower())
    return answers[:1] == ["representation"]


def written_response(status, code, course):
    """Return the response to a write: what write_course() returned, and with a course its ETag."""
    empty = empty_response(status, f"/courses/{code}")
    if not course:
        return empty
    response.content_type = JSON
    response.set_header("ETag", make_etag(course))
    response.set_header("Preference-Applied", "return=representation")
    return course


def refused_write(by, old):
    """Return why a change did nothing: the user may not write, the course has changed since `old`, or there is none."""
    return role_error(by) or (HTTPError(412, CHANGED) if old else unknown_code())


def unknown_code():
    """Return the error for a code of no course: 400 to DELETE, as the tutorial has it, else 404."""
    return HTTPError(400 if request.method == "DELETE" else 404, "Course code is not found in the courses")


def describe_upload(reading, stored, counts, dry_run):
    """Return the JSON that says what an upload did, or would have done, and what was refused or looks wrong."""
    document = {count: getattr(stored, count) for count in counts}
    if reading.repeated:
        document["repeated"] = reading.repeated
    if reading.invalid:
        document |= {"refused": len(reading.invalid), "rows": describe_rows(reading.invalid)}
    if reading.twins:
        document["twins"] = reading.twins[:MAX_ERRORS]
    if dry_run:
        document |= {"columns": reading.columns, "courses": list(reading.courses.values())[:3]}
    return msgspec.json.encode(document)


def describe_rows(refusals):
    """Return the first refused records of an upload, each with its number and what is wrong."""
    return [
        {"row": refusal.number, "error": course_files.explain(refusal)} for refusal in sorted(refusals)[:MAX_ERRORS]
    ]


def empty_response(status, path):
    """Return an empty response with the Location of a path."""
    response.status = status
    response.set_header("Location", url_of(path))
    response.content_type = "text/plain"
    return b""


def url_of(path):
    """Return a path as the client sees it, below URL_PREFIX and percent-encoded (RFC 3986 §3.3)."""
    return quote(request.environ.get("SCRIPT_NAME", ""), encoding="latin1") + quote(path, safe="/!$&'()*+,;=:@")


def set_list_headers(total, cursor, limit, offset):
    """Set the headers of a list: the number of courses, unless it is None, and the links of a page."""
    response.set_header("Vary", "Accept")
    if total is not None:
        response.set_header("X-Total-Count", str(total))
    if limit:
        response.set_header("Link", pagination_links(total, cursor, limit, offset))


def pagination_links(total, cursor, limit, offset):
    """Return the Link header of a page (RFC 8288), without last and prev if it was reached by a cursor."""
    changes = {"first": {}}
    if total is not None:
        changes["last"] = {"offset": max(total - 1, 0) // limit * limit}
    if total is not None and offset:
        changes["prev"] = {"offset": max(min(offset - limit, changes["last"]["offset"]), 0)}
    if cursor:
        changes["next"] = {"after": str(cursor)}
    query = request.query.decode().items()
    kept = {name: text for name, text in query if name not in ("after", "offset", "_") and text.strip()}
    if kept.get("token", "").startswith(KEY_PREFIX):  # a link may be kept for longer than a token is good
        del kept["token"]
    path = url_of("/courses")
    return ", ".join(f'<{path}?{urlencode(kept | change)}>; rel="{rel}"' for rel, change in changes.items())


def preferred_format():
    """Return the name of the format that Accept prefers for a list, JSON if it prefers none."""
    media_types = {media_type.partition(";")[0]: name for name, (media_type, _) in FORMATS.items()}
    return media_types[preferred(*media_types)]


def preferred(*media_types):
    """Return the media type that Accept rates highest, the first of equals, wildcards included (RFC 9110 §12.5.1)."""
    qualities = parse_accept(request.environ.get("HTTP_ACCEPT", ""))

    def quality(wanted):
        ranges = (wanted, wanted.partition("/")[0] + "/*", "*/*")
        return next((qualities[name] for name in ranges if name in qualities), 0)

    return max(media_types, key=quality)


def parse_accept(header):
    """Return the quality of each media range in an Accept header, 1 where it is not given or not a number."""
    qualities = {}
    for item in header.lower().split(","):
        media_range, *parameters = [part.strip() for part in item.split(";")]
        weights = [part.removeprefix("q=") for part in parameters if part.startswith("q=")]
        is_number = weights and re.fullmatch(r"[01](\.\d{0,3})?", weights[0])
        qualities[media_range.partition(" ")[0]] = float(weights[0]) if is_number else 1
    return qualities


# -- Errors and hooks --------------------------------------------------------------------------------------------------

MAX_ERRORS = 100  # bad rows that a response names
EXPOSED_HEADERS = (
    "Content-Disposition, ETag, Link, Location, Preference-Applied, Retry-After, WWW-Authenticate, X-Total-Count"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # a URL can hold a token
    "Cache-Control": "private, no-cache",  # only the client may keep it, and must revalidate (RFC 9111 §5.2.2)
}


class DatabasePlugin:
    """Limits the time of a request's statements, and returns its connection to the pool; SQLite needs neither."""

    name, api = "database", 2

    def apply(self, callback, route):  # noqa: ARG002
        if not db.pooled:
            return callback

        def wrapper(**arguments):
            with db.for_request():
                return callback(**arguments)

        return wrapper


def handle_exceptions(callback):
    """Turn exceptions into errors: 400 or 409 for bad input, 503 for an outage, 500 for a bug.

    An outage or a bug closes the connection, so that the next request opens a new one.
    """

    def wrapper(**arguments):
        try:
            return callback(**arguments)
        except HTTPResponse:
            raise
        except course_files.UploadError as error:
            left_out = len(error.refusals) - MAX_ERRORS
            more = f"; rows has the first {MAX_ERRORS}, and leaves out {left_out:,}" if left_out > 0 else ""
            body = {"error": f"{error}{more}", "rows": describe_rows(error.refusals)}
            raise HTTPError(409 if error.conflict else 400, body) from None
        except ValidationError as error:
            raise HTTPError(400, str(error)) from None
        except limits.errors.StorageError as error:
            raise unavailable("the login limit's storage", database.describe(error.storage_error)) from None
        except Exception as error:
            if db.in_transaction():  # of several requests, which the server undoes, and repeats one by one
                raise HTTPError(500) from error
            db.discard()
            if isinstance(error, peewee.PeeweeException) and db.is_outage(error):
                raise unavailable("the database", database.describe(error)) from None
            log.exception("unexpected error")
            raise HTTPError(500, "Internal Server Error") from None

    return wrapper


plugins = (DatabasePlugin(), handle_exceptions, refuse_large_body, JWTPlugin(), UploadPlugin(), QueryPlugin())
for plugin in plugins:  # a request passes them in this order
    app.install(plugin)


def unavailable(what, reason):
    """Log an outage, and return the 503 for it (RFC 9110 §15.6.4)."""
    log.error("%s is not available: %s", what, reason)
    return HTTPError(503, f"{what} is not available; try again soon", retry_after="1")


def render_error(error):
    """Return an error, Bottle's included, as JSON; its headers stay."""
    if error.status_code == 405:
        methods = complete_methods(error.headers["Allow"])
        response.set_header("Allow", ", ".join(methods))
        error.body = f"{request.method} is not allowed for {request.path}; use {join_words(methods, 'or')}"
    elif error.status_code == 404 and "bottle.route" not in request.environ:
        path, near = request.environ["PATH_INFO"], nearest_path(request.path)
        next_step = f"use {url_of(near)}" if near else f"see {url_of('/docs')} for what there is"
        error.body = f"there is nothing at {path}; {next_step}"
    return msgspec.json.encode(error.body if isinstance(error.body, dict) else {"error": error.body})


app.default_error_handler = render_error


def nearest_path(path):
    """Return the path of the API that is most like one which it does not have, such as /docs/, or None."""
    first, *rest = [part for part in path.split("/") if part] or [""]
    starts = {route.rule.split("/")[1] for route in app.routes}
    near = "/".join(["", *difflib.get_close_matches(first.lower(), starts, 1), *rest])
    return near if allowed_methods(near) else None


def allowed_methods(path):
    """Return the methods of the routes for a path."""
    try:
        app.match({"REQUEST_METHOD": "OPTIONS", "PATH_INFO": path})
    except HTTPError as error:
        if error.status_code == 405:
            return complete_methods(error.headers["Allow"])
    return []


def complete_methods(allowed):
    """Return the methods of the routes for a path, with those that need no route."""
    methods = {"OPTIONS", *allowed.split(",")}
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


@app.hook("before_request")
def trust_proxy():
    """Take the client's address, without its port, from the end of X-Forwarded-For, where TRUSTED_PROXY appends it."""
    environ = request.environ
    if "HTTP_X_FORWARDED_FOR" in environ and is_trusted(environ.get("REMOTE_ADDR", "")):
        forwarded = environ["HTTP_X_FORWARDED_FOR"].rpartition(",")[2].strip(' \t"')
        address = re.sub(r"^\[(.*)\](:\d+)?$|^([^:]+):\d+$", r"\1\3", forwarded)  # [v6]:port or v4:port
        with contextlib.suppress(ValueError):
            environ["REMOTE_ADDR"] = str(ipaddress.ip_address(address.partition("%")[0]))  # a zone can be any text


@functools.lru_cache(maxsize=1024)  # so that it warns once
def is_trusted(address):
    """Return whether an address is a trusted proxy's; warn if it is not, for then all its clients count as one."""
    try:
        ip = ipaddress.ip_address(address)
        name = ip = getattr(ip, "ipv4_mapped", None) or ip
    except ValueError:  # a Unix socket has no address, and only * means it
        name, ip = "*", ipaddress.IPv4Address(0)
    if any(ip in network for network in settings.TRUSTED_PROXY):
        return True
    log.warning("X-Forwarded-For from %s is ignored; if that is your proxy, set TRUSTED_PROXY=%s", address, name)
    return False


def answer_preflight():
    """Answer a preflight of a page of CORS_ORIGINS on every path, so that the page sees why it fails."""
    if request.method == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in request.environ and is_allowed_origin():
        raise HTTPResponse(status=204, allow=", ".join(allowed_methods(request.environ["PATH_INFO"])))


def allow_origin():
    """Let the pages of CORS_ORIGINS read every response, errors included (Fetch standard, CORS protocol)."""
    response.set_header("Vary", "Accept, Origin")
    if is_allowed_origin():
        environ = request.environ
        response.set_header("Access-Control-Allow-Origin", environ["HTTP_ORIGIN"])
        response.set_header("Access-Control-Expose-Headers", EXPOSED_HEADERS)
        if request.method == "OPTIONS":
            requested = environ.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "Authorization")
            response.set_header("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
            response.set_header("Access-Control-Allow-Headers", requested)
            response.set_header("Access-Control-Max-Age", "600")  # seconds


def is_allowed_origin():
    """Return whether the request comes from a page of CORS_ORIGINS."""
    return settings.CORS_ORIGINS.fullmatch(request.environ.get("HTTP_ORIGIN", "")) is not None


if settings.CORS_ORIGINS:
    app.add_hook("before_request", answer_preflight)  # before the other hooks, which refuse some paths
    app.add_hook("after_request", allow_origin)


@app.hook("before_request")
def refuse_invalid_path():
    """Refuse a path with NUL, which no database stores, or that is not UTF-8, from which Bottle would drop bytes."""
    path = request.environ["bottle.raw_path"]
    if "\0" in path or (not path.isascii() and path.encode("latin1") != request.environ["PATH_INFO"].encode()):
        raise HTTPError(400, "the path must be percent-encoded UTF-8 without NUL")


@app.hook("before_request")
def answer_options():
    """Answer OPTIONS with the methods of the path; a catch-all route would turn each 404 into a 405."""
    if request.method != "OPTIONS":
        return
    if request.environ["PATH_INFO"] == "*":  # the server as a whole (RFC 9110 §9.3.7)
        raise HTTPResponse(status=204)
    if methods := allowed_methods(request.environ["PATH_INFO"]):
        raise HTTPResponse(status=204, allow=", ".join(methods))


@app.hook("after_request")
def add_headers():
    """Add the HEADERS that the response lacks."""
    headers = response.headers.dict  # set_header costs four times as much (measured)
    for name, value in HEADERS.items():
        headers.setdefault(name, [value])


# -- The program -------------------------------------------------------------------------------------------------------


def is_quick(method, path):
    """Return whether a request is one indexed read that never waits, of one course in a SQLite file."""
    return method == "GET" and db.reads_never_wait and re.fullmatch(r"/courses/[^/]+", path) is not None


def is_queued(method):
    """Return whether a request is a write, and the database takes one write at a time."""
    return method in ("POST", "PUT", "PATCH", "DELETE") and not db.pooled


def make_headers(origin):
    """Return the headers of a response of the server's own, to a request from a page of this origin or ""."""
    request.bind({"REQUEST_METHOD": "GET", "HTTP_ORIGIN": origin})
    response.bind()
    app.trigger_hook("after_request")
    return response.headerlist


def prepare():
    """Prepare the database and the key, and log what an operator should know; exit if the database cannot be used."""
    with database.exit_if_unusable():
        database.init_db()
        with db.for_request():  # as for requests, so that what fails then fails now
            if db.in_memory:
                models.add_dummy_data()
            check_writes()
            is_public = settings.HOST not in ("127.0.0.1", "::1", "localhost")
            if is_public and User.match_user(*models.DUMMY_USER):
                log.warning("everyone knows the password of user faisal; change it: python seed.py user faisal")
            if not User.select().exists():
                log.info("there is no user yet; add one: python seed.py user NAME, or the dummy data: python seed.py")
            signing_key()
    try:
        settings.LIMIT_STORAGE.get("start")
    except limits.errors.StorageError as error:
        reason = database.describe(error.storage_error)
        log.warning("the login limit's storage is not available, so that nobody can log in: %s", reason)


def check_writes():
    """Raise peewee.PeeweeException if the database cannot be written, unless another program has only locked it."""
    try:
        Course.delete_course("")  # no course has this code
    except peewee.OperationalError as error:
        if not db.is_conflict(error):
            raise
        log.warning("the database is locked: %s", database.describe(error))


def main():
    """Serve the API with waitress."""
    description = f"{__doc__}\nSettings, environment variables:\n\n{settings.describe()}"
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=VERSION)
    _, unknown = parser.parse_known_args()
    if unknown:
        example = "PORT=5001 python course_api.py"
        parser.error(f"{' '.join(unknown)}: settings are environment variables, such as: {example}")
    logs.set_up_log()
    with server.exit_on_signals():
        prepare()
    server.serve(
        server.Service(
            app=app,
            name=db.label,
            make_headers=make_headers,
            max_body=MAX_BODY,
            body_limit=body_limit,
            max_uploads=MAX_UPLOADS,
            is_quick=is_quick,
            is_queued=is_queued,
            commit_together=db.commit_together,
            login_paths={"/login", "/token", "/password"},
            max_logins=MAX_LOGINS,
            quiet_paths={"/health"},
            drain_seconds=database.BUSY_SECONDS + 3,  # Docker kills after 10
        )
    )


if __name__ == "__main__":
    main()
