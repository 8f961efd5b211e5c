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
    THREADS        how many requests are worked on at once, 4
    LOG_LEVEL      DEBUG, INFO, WARNING or ERROR; INFO writes a line per request on standard output

Every error is JSON of one shape, whatever went wrong: {"error": "a sentence that says what to mend"}
"""

import argparse
import collections
import contextlib
import functools
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Annotated, Literal
from urllib.parse import quote

import bottle
import jwt
import msgspec
import peewee
from bottle import HTTPError, HTTPResponse, request, response
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, WSGITask

import models
import seed
from models import Code, Course, Instructor, Name, Password, User, Username

# -- Settings ----------------------------------------------------------------------------------------------------------


class Settings(msgspec.Struct):
    HOST: str = "127.0.0.1"
    PORT: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 5000
    SECRET_KEY: str = ""
    TOKEN_SECONDS: Annotated[int, msgspec.Meta(ge=1, le=10**9)] = 200
    THREADS: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 4
    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def explain(error):
    """Return what msgspec found wrong, with the field's name, which it puts last, in front of what does not have it."""
    message, _, field = str(error).rstrip("`").partition(" - at `$.")
    return message if field in message else f"{field}: {message}"


try:
    settings = msgspec.convert({name: value for name, value in os.environ.items() if value}, Settings, strict=False)
except msgspec.ValidationError as error:
    sys.exit(f"{explain(error)}; see python course_api.py --help")
if settings.SECRET_KEY and len(os.fsencode(settings.SECRET_KEY)) < 32:  # RFC 7518 §3.2: HS256's own length
    sys.exit("SECRET_KEY is shorter than 32 bytes; make one with: openssl rand -hex 32")

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"

log = logging.getLogger("course_api")
bottle.Response.default_content_type = "application/json"
app = bottle.Bottle()
app.uninstall(True)  # Bottle's own plugins, for dicts and templates: each route returns its JSON as text

# -- Errors ------------------------------------------------------------------------------------------------------------

UNKNOWN_CODE = "Course code is not found in the courses"


def answer_error(error):
    """Answer any error, Bottle's own too, in the one shape; headers that came with it, such as Allow, stay."""
    return msgspec.json.encode({"error": error.body})


app.default_error_handler = answer_error


@app.install
def answer_503(callback):
    """Answer 503 where the database is out of reach, locked or full (RFC 9110 §15.6.4)."""

    def guarded(**arguments):
        try:
            return callback(**arguments)
        except (peewee.OperationalError, peewee.InterfaceError) as error:
            log.error("the database does not answer: %s", error)
            raise HTTPError(503, "the database does not answer, try again soon", retry_after="1") from None

    return guarded


@app.hook("before_request")
def refuse_garbled_path():
    """Refuse a path that is not UTF-8: Bottle drops the bad bytes, and so would reach another course."""
    path = request.environ["bottle.raw_path"]
    if not path.isascii() and path.encode("latin1") != request.environ["PATH_INFO"].encode():
        raise HTTPError(400, "the path must be percent-encoded UTF-8")


# -- Input validation --------------------------------------------------------------------------------------------------

MAX_BODY = 16 * 1024 * 1024  # bytes
BOTH = "Course name and instructor's name must be provided"
EITHER = "Course name or instructor's name must be provided"


class Login(msgspec.Struct):
    username: Username = None
    password: Password = None


class Change(msgspec.Struct):
    name: Name = None
    instructor: Instructor = None


class NewCourse(Change):
    code: Code = None


DECODERS = {
    kind: msgspec.json.Decoder(kind, dec_hook=lambda field, value: field(value)) for kind in (Login, Change, NewCourse)
}


def require(given, message):
    """Raise 400 with the message unless `given`."""
    if not given:
        raise HTTPError(400, message)


def read_body():
    """Return the request's body, in bytes; raise 413 where it is larger than MAX_BODY."""
    length, most = request.environ.get("CONTENT_LENGTH") or "", MAX_BODY + 1
    if not length.isdecimal():  # a server that decodes chunks, which come without a length, says so
        length = most if request.environ.get("wsgi.input_terminated") else 0
    body = request.environ["wsgi.input"].read(min(int(length), most))
    if len(body) == most:
        raise HTTPError(413, f"the body is larger than {MAX_BODY} bytes")
    return body


def read_json(kind):
    """Return the request's JSON body as a `kind`; raise 400 or 415 with what to mend."""
    if request.content_type.partition(";")[0].strip() != "application/json":
        raise HTTPError(415, "send JSON, with the header Content-Type: application/json")
    try:
        return DECODERS[kind].decode(read_body().decode())
    except msgspec.ValidationError as error:
        raise HTTPError(400, explain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPError(400, f"the body is not JSON: {error}") from None


# -- Tokens ------------------------------------------------------------------------------------------------------------

REASONS = {  # PyJWT's own words can quote the token, and must not reach a header
    jwt.ExpiredSignatureError: "the token has expired, log in again",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidAlgorithmError: "the token is not signed with HS256",
    jwt.InvalidSignatureError: "the token is not signed with this API's key",
    jwt.MissingRequiredClaimError: "the token lacks sub, iat or exp",
}


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
    claims = jwt.decode(token, key, algorithms=["HS256"], options={"require": ["sub", "iat", "exp"]})
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


@app.post("/login", public=True)
def log_in():
    """Trade a name and a password for a token, which is the whole body."""
    login = read_json(Login)
    require(login.username and login.password, "username and password must be provided")
    require(User.match_user(login.username, login.password), "username or password is not correct")
    response.content_type = "text/plain"
    response.set_header("Cache-Control", "no-store")  # RFC 6749 §5.1
    return make_token(login.username)


# -- Routes: courses ---------------------------------------------------------------------------------------------------


def location(code):
    """Return the path of a course, percent-encoded where RFC 3986 §3.3 asks for it."""
    return "/courses/" + quote(code, safe="!$&'()*+,;=:@")


@app.get(["/courses", "/courses/"])
def list_courses():
    """Answer every course, in the order they were added."""
    return Course.get_all_json()


@app.get("/courses/<code>")
def get_course(code):
    """Answer one course."""
    course = Course.get_json(code)
    if not course:
        raise HTTPError(404, UNKNOWN_CODE)
    return course


@app.post("/courses")
def add_course():
    """Add a course."""
    new = read_json(NewCourse)
    require(new.code, Code.missing)
    require(new.name and new.instructor, BOTH)
    try:
        Course.add_course(new.code, new.instructor, new.name)
    except peewee.IntegrityError:
        raise HTTPError(409, f"Course code {new.code} is in the courses already") from None
    return HTTPResponse(status=201, location=location(new.code))


def update(code, change):
    """Answer a change of a course."""
    if not Course.update_course(code, change.instructor, change.name):
        raise HTTPError(404, UNKNOWN_CODE)
    return HTTPResponse(status=204, location=location(code))


@app.put("/courses/<code>")
def replace_course(code):
    """Set the name and the instructor of a course."""
    change = read_json(Change)
    require(change.name and change.instructor, BOTH)
    return update(code, change)


@app.patch("/courses/<code>")
def change_course(code):
    """Set the name or the instructor of a course, or both."""
    change = read_json(Change)
    require(change.name or change.instructor, EITHER)
    return update(code, change)


@app.delete("/courses/<code>")
def delete_course(code):
    """Delete a course."""
    require(Course.delete_course(code), UNKNOWN_CODE)
    return HTTPResponse(status=204, location="/courses/")


# -- Routes: health ----------------------------------------------------------------------------------------------------


@app.get("/health", public=True)
def get_health():
    """Answer whether the database answers."""
    models.check_health()
    return '{"status": "ok"}'


# -- The server --------------------------------------------------------------------------------------------------------

LIMITS = {
    "connection_limit": 2000,
    "channel_timeout": 30,  # seconds an idle connection stays open
    "cleanup_interval": 10,  # seconds between two looks for idle ones
    "max_request_header_size": 32 * 1024,  # bytes
    "max_request_body_size": MAX_BODY + 1,  # bytes; what reaches this is refused
    "inbuf_overflow": MAX_BODY + 1,  # bytes; more would go to a file, and the disk may be read-only
    "outbuf_overflow": 2**30,
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # nothing reads them
}
LINGER_SECONDS = 0.5  # after SIGTERM, how long to wait for a request that is on its way
DRAIN_SECONDS = models.BUSY_SECONDS + 3  # and for one that is worked on: Docker kills after 10
STALL_SECONDS = 0.005  # how long a request may take before another thread serves the next ones

stopping = threading.Event()
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
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.channel.refused = True
        self.write(body)


class Channel(HTTPChannel):
    task_class, error_task_class = AppAnswer, Refusal
    refused = False

    def handle_close(self):
        """Close; after a refusal, once the client has closed, or it could lose the answer (RFC 9112 §9.6)."""
        if self.connected and self.refused:
            self.refused = self.will_close = False
            self.readable, self.received = lambda: True, lambda _data: False
            with contextlib.suppress(OSError):  # it has gone meanwhile
                self.socket.shutdown(socket.SHUT_WR)
        else:
            super().handle_close()


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
        self.busy = threading.Event()
        self.watching = threading.Lock()  # for the moment in which an old leader still watches the sockets

    def start(self, threads):
        self.listeners = [listener for listener in self.sockets.values() if isinstance(listener, BaseWSGIServer)]
        for listener in self.listeners:
            listener.channel_class = Channel
        for _ in range(threads):
            threading.Thread(target=self.follow, daemon=True).start()

    def add_task(self, task):
        """Take a task from waitress, which calls this under the lead."""
        self.tasks.append(task)

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
            poll = max(self.sockets) >= 1024  # select() is faster, and cannot watch those
            wasyncore.loop(0 if self.tasks else 1, use_poll=poll, map=self.sockets, count=1)
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
        stopped = time.monotonic()
        while channels := [channel for channel in list(self.sockets.values()) if isinstance(channel, Channel)]:
            busy = any(channel.request or channel.requests or channel.total_outbufs_len for channel in channels)
            if time.monotonic() - stopped > (DRAIN_SECONDS if busy else LINGER_SECONDS):
                break
            self.look()
        self.look()  # the last lines of the log


def prepare():
    """Make ready what the app needs of the database; return whether it has a user."""
    models.prepare()
    if models.IN_MEMORY:
        seed.add_dummy_data()
    signing_key()
    has_users = User.select().exists()
    models.database.close()  # a server may fork now, and a connection must not be shared
    return has_users


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
        create_server(app, sockets, _dispatcher=loop, host=settings.HOST, port=settings.PORT, **LIMITS)
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen on {settings.HOST}:{settings.PORT}: {error}; see HOST and PORT")
    loop.start(settings.THREADS)
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
