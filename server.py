"""waitress, with what it lets an application add: JSON errors, stricter headers, a log, quick reads, a graceful stop.

Private parts of waitress are touched here only, each with the reason.
"""

import collections
import contextlib
import logging
import signal
import socket
import sys
import threading
import time
from typing import NamedTuple
from urllib.parse import quote

import msgspec
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask

from settings import HOST, LOG_LEVEL, PORT, THREADS, URL_PREFIX

MAX_CONNECTIONS = 2000
MAX_BLANKS = 1000  # in the headers of a request, for which waitress takes quadratic time
WAITRESS_OPTIONS = {
    "channel_timeout": 30,  # seconds an idle connection stays open
    "max_request_header_size": 32 * 1024,  # bytes
    "outbuf_overflow": 2**30,
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # the app reads the only one that counts
}
LINGER_SECONDS = 0.5  # after SIGTERM, open connections may still send a request
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
log = logging.getLogger("course_api")
access_log = collections.deque()  # lines to write in batches, which takes a tenth off each request (measured)
quick_channels = collections.deque()  # whose requests the main thread is to answer
stopping = threading.Event()


class Service(NamedTuple):
    """What the server knows of the app that it serves; paths are without URL_PREFIX."""

    app: object
    name: str  # what the app serves, for the log
    headers: dict  # of every response
    max_body: int  # bytes
    is_quick: object  # a function of a method and a path: whether the main thread can answer without waiting
    login_paths: set  # whose requests wait for each other
    max_logins: int  # at a time
    quiet_paths: set  # logged at DEBUG only
    drain_seconds: float  # how long requests may take to finish after SIGTERM


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
            is_quiet = path.removeprefix(URL_PREFIX) in self.channel.server.service.quiet_paths
            level = logging.DEBUG if is_quiet else logging.INFO
            if log.isEnabledFor(level):
                begin = time.strftime(TIME_FORMAT, time.gmtime(self.start_time))
                user, path = quote(environ.get("REMOTE_USER", "-")), quote(path, encoding="latin1")
                size = self.content_length if self.has_body and method != "HEAD" else 0
                milliseconds = (time.time() - self.start_time) * 1000
                message = f"{environ['REMOTE_ADDR']} {user} {method} {path} {self.status[:3]} {size or 0} bytes "
                message += f"{milliseconds:.1f} ms"
                access_log.append(
                    LOG_FORMAT % {"asctime": begin, "levelname": logging.getLevelName(level), "message": message}
                )


class RefusalTask(Task):
    complete = True  # as waitress' own ErrorTask

    def execute(self):
        """Respond with JSON to a request that waitress refuses."""
        error = self.request.error
        body = msgspec.json.encode({"error": f"{error.reason}: {error.body}"})
        self.status, self.content_length = f"{error.code} {error.reason}", len(body)
        self.response_headers += [("Content-Type", "application/json"), *self.channel.server.service.headers.items()]
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

    def __init__(self, service, login_dispatcher, *args, **options):
        super().__init__(service.app, *args, **options)
        self.service, self.login_dispatcher = service, login_dispatcher

    def set_socket_options(self, connection):
        """Let Linux hang up on a client that reads nothing; waitress would wait while it has requests."""
        super().set_socket_options(connection)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * self.adj.channel_timeout)

    def add_task(self, channel):
        """Hand the first request of a channel to the threads that are to answer it."""
        request = channel.requests[0]
        if stopping.is_set():
            request.headers["CONNECTION"] = "close"
        path = "" if request.error else request.path.removeprefix(URL_PREFIX)
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and not request.error and self.service.is_quick(request.command, path):
            quick_channels.append(channel)
        elif path in self.service.login_paths:
            self.login_dispatcher.add_task(channel)
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


def listen(service, sockets):
    """Return a server for each address of HOST; exit with one line if one cannot be used."""
    dispatcher, login_dispatcher = ThreadedTaskDispatcher(), ThreadedTaskDispatcher()
    dispatcher.set_thread_count(THREADS)
    login_dispatcher.set_thread_count(service.max_logins + 1)  # one more, to refuse the others
    limits = {
        "connection_limit": connection_limit(),
        "max_request_body_size": service.max_body + 1,  # bytes; what reaches this is refused
        "inbuf_overflow": service.max_body + 1,  # bytes; more would go to a file, and the disk may be read-only
    }
    try:
        adj = Adjustments(host=HOST, port=PORT, url_prefix=URL_PREFIX, **WAITRESS_OPTIONS, **limits)
        options = {"map": sockets, "dispatcher": dispatcher, "adj": adj}
        return [Server(service, login_dispatcher, sockinfo=info, **options) for info in adj.listen]
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen on {HOST}:{PORT}: {error}; see HOST and PORT")


def serve(service):
    """Serve until SIGTERM or Ctrl-C; then answer what has been accepted, and close each connection once it is idle.

    A second signal stops at once.
    """
    sockets = {}
    servers = listen(service, sockets)

    def stop(number, _frame):
        signal.signal(number, signal.SIG_DFL)
        stopping.set()
        servers[0].trigger.pull_trigger()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(HOST, f"[{HOST}]" if ":" in HOST else HOST)  # noqa: S104
    address = f"http://{host}:{servers[0].effective_port}{URL_PREFIX}"  # that a browser on this machine takes
    log.info("Serving %s on %s; press Ctrl-C to stop", service.name, address)
    while not stopping.is_set():
        poll(sockets, 1)
    drain(servers, sockets, service.drain_seconds)
    log.info("Stopped")


def drain(servers, sockets, seconds):
    """Accept nothing more; answer what has been accepted, for this long, and close each connection once it is idle."""
    for server in servers:
        for _ in range(server.adj.backlog):
            server.handle_accept()
        wasyncore.dispatcher.close(server)  # not server.close(), after which nothing could wake the loop
    start, channels = time.monotonic(), True
    while channels and time.monotonic() - start < seconds:
        poll(sockets, 0.05)
        channels = [channel for server in servers for channel in server.active_channels.values()]
        for channel in channels:
            is_idle = not (channel.request or channel.requests or channel.total_outbufs_len)
            channel.will_close |= is_idle and time.monotonic() - start > LINGER_SECONDS
    poll(sockets, 0)  # writes the last lines of the log


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


def set_up_log():
    """Write the log to standard output, in UTC."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(stream=sys.stdout, level=LOG_LEVEL, format=LOG_FORMAT, datefmt=TIME_FORMAT)
    logging.getLogger("peewee").setLevel("WARNING")  # its DEBUG shows password hashes and the key
    logging.getLogger("waitress.queue").setLevel("ERROR")  # else a line for each request that waits
