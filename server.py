"""waitress, with what it lets an application add: JSON errors, stricter headers, quick reads, a graceful stop.

Private parts of waitress are touched here only, each with the reason.
"""

import collections
import contextlib
import errno
import io
import itertools
import logging
import os
import re
import selectors
import signal
import socket
import sys
import threading
import time
from typing import NamedTuple

import msgspec
from waitress import receiver, wasyncore
from waitress.adjustments import Adjustments
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, Error

from logs import log_request, log_writer
from settings import HOST, PORT, THREADS, URL_PREFIX

MAX_CONNECTIONS = 2000
MAX_BLANKS = 1000  # in the headers of a request, for which waitress takes quadratic time
MAX_HEADERS = 100  # of a request; each takes much more memory than its text
MAX_LARGE = 100  # bodies of more than LARGE_BODY, of which 2,000 would take too much memory
MAX_GROUP = 32  # writes in one commit
LARGE_BODY = 8 * 1024  # bytes; those of logins and of single courses are smaller
MAX_CHUNK_LINE = 1024  # bytes of a chunk's size with its extensions, and of the trailer: quadratic time, too
TLS_HANDSHAKE = b"\x16\x03"  # the beginning of what a client sends to https:// (RFC 8446 §5.1)
IDLE_SECONDS = 150  # a connection stays open between requests; proxies keep theirs for up to 120
STALL_SECONDS = 30  # a client may pause within a request or a response
CROWDED_SECONDS = 5  # either, once nine tenths of the connections are in use
REQUEST_SECONDS = 60  # a request that is no large upload may take to arrive
WAITRESS_OPTIONS = {
    "channel_timeout": IDLE_SECONDS,
    "cleanup_interval": 5,  # seconds between looks for what is idle
    "max_request_header_size": 32 * 1024,  # bytes
    "max_request_body_size": 10**4300,  # bytes, more than Python reads from text; Parser judges
    "inbuf_overflow": 2**30,  # bytes; more would go to a file, and the disk may be read-only
    "outbuf_overflow": 2**30,
    "outbuf_high_watermark": 2**30,  # bytes; above it, a thread would wait until its client reads
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # the app reads the only one that counts
}
SWITCH_SECONDS = 0.0005  # between threads; with Python's 5 ms, others starve while the loop looks at 2,000 connections
LINGER_SECONDS = 0.5  # after SIGTERM, open connections may still send a request
log = logging.getLogger("course_api")
quick_channels = collections.deque()  # whose requests the main thread is to answer
stopping = threading.Event()


# -- Requests and connections ------------------------------------------------------------------------------------------


class Service(NamedTuple):
    """What the server knows of the app that it serves; paths are without URL_PREFIX."""

    app: object
    name: str  # what the app serves, for the log
    make_headers: object  # a function of the header Origin: the headers of a response of the server's own
    max_body: int  # bytes, of a body that anybody may send
    body_limit: object  # a function of an environ without a body: how many bytes its body may have
    max_uploads: int  # bodies of more than max_body that arrive or wait at a time
    is_quick: object  # a function of a method and a path: whether the main thread can answer without waiting
    is_queued: object  # a function of a method: whether the request would wait for all others of which it is true
    commit_together: object  # a function: a context in which what requests write is committed at its end, or not at all
    login_paths: set  # whose requests wait for each other
    max_logins: int  # at a time
    quiet_paths: set  # logged at DEBUG only
    drain_seconds: float  # how long requests may take to finish after SIGTERM


class Answer(NamedTuple):
    """What the app has answered to a request, before it is sent."""

    start_time: float  # in Unix time
    environ: dict
    status: str
    headers: list
    body: bytes


class Task(WSGITask):
    def answer(self):
        """Return what the app answers."""
        self.start()
        starts = []
        parts = self.channel.server.application(self.get_environment(), lambda *start: starts.append(start))
        status, headers, *_ = starts[-1]
        return Answer(self.start_time, self.environ, status, headers, b"".join(parts))

    def execute(self):
        """Send what the app has answered, or have it answer now."""
        if self.request.answer:
            self.start_time, self.environ, *answer = self.request.answer
            self.send(*answer)
        else:
            super().execute()

    def send(self, status, headers, body):
        self.status, self.complete, self.content_length = status, True, len(body)
        self.response_headers += headers
        self.write(body)

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
            if self.request.is_queued and self.status[:3] == "503" and not self.request.error:
                self.channel.server.gave_up = time.time()
            level = logging.DEBUG if is_quiet else logging.INFO
            size = self.content_length if self.has_body and method != "HEAD" else 0
            address, user = environ["REMOTE_ADDR"], environ.get("REMOTE_USER", "-")
            log_request(level, self.start_time, address, user, method, path, self.status[:3], size or 0)


class RefusalTask(Task):
    def execute(self):
        """Respond with JSON to a request that is refused before the app sees it."""
        error = self.request.error
        headers = self.channel.server.service.make_headers(self.request.headers.get("ORIGIN", ""))
        if error.code == BusyError.code:
            headers.append(("Retry-After", "1"))
        self.set_close_on_finish()
        body = msgspec.json.encode({"error": f"{error.reason}: {error.body}"})
        self.send(f"{error.code} {error.reason}", headers, body)


class BusyError(Error):
    code, reason = 503, "Service Unavailable"


# The "$" of waitress also matches before a line feed, at which another server may end the line (CVE-2025-55315).
receiver.ONLY_HEXDIG_RE = re.compile(receiver.ONLY_HEXDIG_RE.pattern[:-1] + rb"\Z")
receiver.CHUNK_EXT_RE = re.compile(receiver.CHUNK_EXT_RE.pattern[:-1] + rb"\Z")


class Parser(HTTPRequestParser):
    """Reads a request, and refuses one that a proxy could read differently, or that would take too much.

    A body that is too large is cut off as soon as that is known: the app gets only its size, to refuse it.
    """

    is_cut = is_queued = False
    pipelined = b""  # what came behind this request
    answer = None  # of the app, if it has answered already
    is_alone = False  # whether it has been tried together with others

    def __init__(self, adj, server):
        super().__init__(adj)
        self.server, self.begin, self.limit = server, time.time(), LARGE_BODY

    def received(self, data):
        start, consumed = self.header_plus, super().received(data)
        size = self.content_length or (len(self.body_rcv) if self.chunked else 0)
        if size > self.limit and not self.error:
            self.judge(size)
        elif self.chunked and len(self.body_rcv.control_line) + len(self.body_rcv.trailer) > MAX_CHUNK_LINE:
            self.error, self.completed = BadRequest("a chunk's size, or the trailer, is too long"), True
        elif not (self.headers_finished or start) and data.startswith(TLS_HANDSHAKE):
            self.error, self.completed = BadRequest("this port speaks HTTP, not HTTPS"), True
        if self.error or self.is_cut:  # so that nothing behind it is believed
            self.expect_continue = False
            origin = re.search(rb"(?i)\r\nOrigin:[ \t]*([!-~]+)", start + data) if self.error else None
            if origin:  # which is not parsed if the headers are bad
                self.headers.setdefault("ORIGIN", origin[1].decode())
        elif self.completed and not self.empty:
            self.pipelined = data[consumed:]
        else:
            return consumed
        return len(data)

    def judge(self, size):
        """Cut the body off if this request may not send so much, and refuse it if too many do."""
        service, headers = self.server.service, self.headers
        environ = {"REQUEST_METHOD": self.command, "PATH_INFO": self.path.removeprefix(URL_PREFIX)}
        environ |= {"QUERY_STRING": self.query, "HTTP_AUTHORIZATION": headers.get("AUTHORIZATION", "")}
        self.limit = service.body_limit(environ) if size > service.max_body else service.max_body
        if size > self.limit:
            self.body_rcv.getbuf().close()
            self.body_rcv, self.is_cut, self.completed = None, True, True
            headers["CONTENT_LENGTH"], headers["CONNECTION"] = str(size), "close"
        elif self.server.count_requests(self.limit) > (service.max_uploads if self.is_upload else MAX_LARGE):
            self.error, self.completed = BusyError("too many large requests at once; try again soon"), True

    @property
    def is_upload(self):
        """Whether the body may be larger than anybody's."""
        return self.limit > self.server.service.max_body

    def parse_header(self, header_plus):
        """Refuse headers that would take too long, or that a proxy could read differently (RFC 9112 §3.2, §6.1)."""
        if header_plus.count(b" ") + header_plus.count(b"\t") > MAX_BLANKS:
            raise ParsingError("there are too many blanks in the headers")
        if header_plus.count(b"\n") > MAX_HEADERS + 1:
            raise ParsingError(f"there are more than {MAX_HEADERS} headers")
        if not header_plus.isascii():
            header_plus = encode_target(header_plus)
        try:
            super().parse_header(header_plus)
        except ValueError:
            raise ParsingError("there is a bad number or address in the headers") from None
        self.header_plus, self.first_line, self.request_uri = b"", b"", ""  # copies that nobody needs
        headers = self.headers
        if b"transfer-encoding" in header_plus.lower() and not (self.chunked and "CONTENT_LENGTH" not in headers):
            raise ParsingError("Transfer-Encoding must be chunked and without Content-Length, in HTTP/1.1")
        if self.version == "1.1" and "," in headers.get("HOST", ","):
            raise ParsingError("there must be exactly one header Host")
        if "," in headers.get("CONNECTION", ""):  # a list, of which waitress knows these when they are alone
            options = re.findall(r"close|keep-alive|[^\s,]+", headers["CONNECTION"].lower())
            headers["CONNECTION"] = next((name for name in ("close", "keep-alive") if name in options), "")


def encode_target(header_plus):
    """Percent-encode the bytes of a request's target that are not ASCII, which waitress refuses and curl sends."""
    line, end, headers = header_plus.partition(b"\r\n")
    method, blank, rest = line.partition(b" ")
    return method + blank + re.sub(rb"[\x80-\xff]", lambda byte: b"%%%02X" % byte[0][0], rest) + end + headers


class Channel(HTTPChannel):
    """A connection, which reads a request once the response before it has been read.

    If the client may still be sending what is refused, the connection is read on for a while before it is closed.
    Otherwise the close would be a reset, which can reach the client before it has read why.
    """

    task_class, error_task_class = Task, RefusalTask
    pipelined = b""  # what came behind the request that is served
    lingers = False  # once a request has been refused
    rest, end = None, None  # while it lingers: the bytes that may still come, and until when
    is_watched = True  # whether the loop will see what the client sends

    def parser_class(self, adj):
        return Parser(adj, self.server)

    def service(self):
        request = self.requests[0]
        if request.is_queued and not request.answer:
            if self.last_activity < self.server.gave_up:
                request.error = BusyError("the requests before this one waited in vain; try again soon")
            else:
                self.server.answer_together(self)
        self.lingers = bool(request.error or request.is_cut)
        super().service()
        if self.writable() or not self.is_watched:
            self.wake_loop()

    def wake_loop(self):
        """Have the loop look at what this channel waits for now."""
        self._map.changed.append(self)
        self.server.trigger.pull_trigger()

    def readable(self):
        return not self.pipelined and super().readable()

    def writable(self):
        return super().writable() or (self.pipelined and not self.requests)

    def handle_write(self):
        super().handle_write()
        self.read_on()

    def read_on(self):
        """Read the next request, if it is here already and the client has read the response before it."""
        if self.pipelined and self.connected and not (self.requests or self.total_outbufs_len):
            data, self.pipelined = self.pipelined, b""
            self.received(data)

    def handle_close(self):
        if self.lingers and self.connected:
            self.lingers, self.will_close = False, False
            self.rest, self.end = 2**24, time.time() + STALL_SECONDS
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:  # the client has gone
                super().handle_close()
        else:
            super().handle_close()

    def received(self, data):
        if self.rest is None:
            return super().received(data)
        self.rest -= len(data)
        self.will_close = self.rest < 0
        return False

    def write_soon(self, data):
        """Send a large body from where it is; waitress would copy it, once for each client that is slow to read."""
        if isinstance(data, bytes) and len(data) > LARGE_BODY:
            data = ReadOnlyFileBasedBuffer(io.BytesIO(data))
            data.prepare()
        written = super().write_soon(data)
        if self.total_outbufs_len:
            self.wake_loop()
        return written

    def is_overdue(self, now, patience):
        """Return whether a request or a response takes too long, with pauses of so many seconds."""
        if self.rest is not None:
            return now > self.end
        is_slow = self.request is not None and not self.request.is_upload and now - self.request.begin > REQUEST_SECONDS
        return is_slow or now - self.last_activity > patience

    @property
    def is_idle(self):
        """Whether nothing is on its way in or out."""
        return self.rest is None and not (self.request or self.requests or self.pipelined or self.total_outbufs_len)


class Server(TcpWSGIServer):
    """Leaves one indexed read of SQLite to the main thread, which reads all requests, and the rest to other threads.

    Handing such a request, and the interpreter's lock, to another thread takes longer than the request (measured).
    Logins, which wait for each other, have threads of their own. All large uploads share one thread, and so do all
    writes of SQLite: in several threads, a tenth fewer are stored (measured), and reads wait while a write is locked.
    """

    channel_class = Channel
    gave_up = 0  # when a queued request was last answered 503, in Unix time; those behind it would wait as long again

    def __init__(self, service, login_dispatcher, upload_dispatcher, queue_dispatcher, *args, **options):
        super().__init__(service.app, *args, **options)
        self.service, self.login_dispatcher = service, login_dispatcher
        self.upload_dispatcher, self.queue_dispatcher = upload_dispatcher, queue_dispatcher

    def maintenance(self, now):
        """Close connections that are idle or slow; sooner where there is little room for others."""
        super().maintenance(now)
        is_crowded = len(self._map) > 0.9 * self.adj.connection_limit
        patience = CROWDED_SECONDS if is_crowded else STALL_SECONDS
        for channel in self.active_channels.values():
            is_due = not channel.requests and (is_crowded or not channel.is_idle)
            if is_due and channel.is_overdue(now, patience):
                channel.will_close = True
                if channel.total_outbufs_len:  # the loop would wait until the client reads
                    with contextlib.suppress(OSError):
                        channel.socket.shutdown(socket.SHUT_RDWR)
            if channel.will_close:
                self._map.changed.append(channel)

    def count_requests(self, limit):
        """Return how many requests of this limit arrive or wait; only large ones pay for looking at all connections."""
        channels = list(self.active_channels.values())
        requests = [request for channel in channels for request in (*channel.requests, channel.request)]
        return sum(request is not None and request.limit == limit for request in requests)

    def answer_together(self, channel):
        """Have the app answer a queued request and those behind it, and commit once for all of them (group commit).

        The disk takes as long for one commit as for many. If anything fails, nothing is kept, and each of them is
        answered alone. No answer is sent before the commit.
        """
        with self.queue_dispatcher.lock:
            behind = list(itertools.islice(self.queue_dispatcher.queue, MAX_GROUP - 1))
        tasks = [Task(one, one.requests[0]) for one in (channel, *behind) if one.connected]
        tasks = [task for task in tasks if not task.request.is_alone]
        if len(tasks) > 1:
            for task in tasks:
                task.request.is_alone = True
            with contextlib.suppress(Exception):  # whatever it is, a request meets it again
                for task, answer in zip(tasks, self.commit_answers(tasks), strict=True):
                    task.request.answer = answer

    def commit_answers(self, tasks):
        """Return the app's answers, all of which are committed; raise an exception if any is not."""
        try:
            with self.service.commit_together():
                answers = [task.answer() for task in tasks]
                if any(answer.status >= "500" for answer in answers):
                    raise RuntimeError("what failed may have undone the others")
        finally:
            for task in tasks:
                task.request.get_body_stream().seek(0)  # for another try
        return answers

    def pull_trigger(self):
        """Leave the loop alone: each channel wakes it when it must."""

    def add_task(self, channel):
        """Hand the first request of a channel to the threads that are to answer it."""
        request = channel.requests[0]
        channel.pipelined = request.pipelined
        if stopping.is_set():
            request.headers["CONNECTION"] = "close"
        path = "" if request.error else request.path.removeprefix(URL_PREFIX)
        if not request.error and self.service.is_quick(request.command, path):
            quick_channels.append(channel)
        elif path in self.service.login_paths:
            self.login_dispatcher.add_task(channel)
        elif request.is_upload:
            self.upload_dispatcher.add_task(channel)
        elif not request.error and self.service.is_queued(request.command):
            request.is_queued = True
            self.queue_dispatcher.add_task(channel)
        else:
            super().add_task(channel)


class Sockets(dict):
    """What the loop serves, by file number: waitress' servers and channels, and the pipes that wake it.

    The system remembers what each of them waits for; waitress' own loop asks each of them in each round. A channel is
    watched while its request is answered, too, since few clients send the next one before they have the response.
    """

    def __init__(self):
        super().__init__()
        self.selector = selectors.DefaultSelector()
        self.changed = collections.deque()  # servers and channels that may wait for something else than before

    def __setitem__(self, number, one):
        super().__setitem__(number, one)
        self.selector.register(number, selectors.EVENT_READ, one)

    def __delitem__(self, number):
        super().__delitem__(number)
        if number in self.selector.get_map():
            self.selector.unregister(number)

    def watch(self, one):
        """Tell the system what a server or a channel waits for."""
        number = one._fileno
        if number not in self:  # closed
            return
        one.is_watched = False  # until the loop has looked: a thread that changes something meanwhile wakes the loop
        one.is_watched = one.readable()
        events = selectors.EVENT_READ * bool(one.is_watched) | selectors.EVENT_WRITE * bool(one.writable())
        if number not in self.selector.get_map():
            if events:
                self.selector.register(number, events, one)
        elif events:
            self.selector.modify(number, events, one)
        else:
            self.selector.unregister(number)

    def poll(self, servers, seconds):
        """Serve what comes within this time."""
        for server in servers:
            self.watch(server)
        for key, events in self.selector.select(0 if self.changed else seconds):
            one = key.data
            if self.get(key.fd) is not one:  # closed meanwhile
                continue
            is_read = events & selectors.EVENT_READ and one.readable()
            if is_read:
                wasyncore.read(one)
            if events & selectors.EVENT_WRITE and one.writable():
                wasyncore.write(one)
            if not is_read or one.writable():
                self.changed.append(one)
        while quick_channels:
            try:
                quick_channels.popleft().service()
            except Exception:
                log.exception("unexpected error")  # as waitress' threads do
        while self.changed:
            self.watch(self.changed.popleft())


def listen(service, sockets):
    """Return a server for each address of HOST; exit with one line if one cannot be used."""
    dispatchers = []
    for threads in (THREADS, service.max_logins + 1, 1, 1):  # of logins one more, to refuse the others
        dispatchers.append(ThreadedTaskDispatcher())
        dispatchers[-1].set_thread_count(threads)
    servers, port = [], PORT
    try:
        adj = Adjustments(
            host=HOST, port=PORT, url_prefix=URL_PREFIX, connection_limit=connection_limit(), **WAITRESS_OPTIONS
        )
        for family, kind, protocol, address in adj.listen:
            info = (family, kind, protocol, (address[0], port, *address[2:]))
            options = {"map": sockets, "dispatcher": dispatchers[0], "adj": adj, "sockinfo": info}
            try:
                servers.append(Server(service, *dispatchers[1:], **options))
            except OSError as error:
                missing = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                if HOST != "*" or error.errno not in missing or info[0] != socket.AF_INET6:
                    raise
            else:
                port = int(servers[-1].effective_port)  # the same for all, also if the first took a free one
    except (OSError, ValueError) as error:
        hint = "see HOST and PORT"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            hint = f"choose another: PORT={PORT + 1 if PORT < 65535 else 5001} python course_api.py"
        sys.exit(f"cannot listen on {HOST}:{PORT}: {str(error).rstrip('.')}; {hint}")
    return servers


def serve(service):
    """Serve until SIGTERM or Ctrl-C; then answer what has been accepted, and close each connection once it is idle.

    A second signal stops at once.
    """
    sockets = Sockets()
    sys.setswitchinterval(SWITCH_SECONDS)
    servers = listen(service, sockets)

    def stop(number, _frame):
        signal.signal(number, signal.SIG_DFL)
        stopping.set()
        servers[0].trigger.pull_trigger()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(HOST, f"[{HOST}]" if ":" in HOST else HOST)  # noqa: S104
    address = f"http://{host}:{servers[0].effective_port}{URL_PREFIX}"  # that a browser on this machine takes
    log.info("Serving %s on %s; press Ctrl-C to stop", service.name, address)
    while not stopping.is_set():
        sockets.poll(servers, 1)
    log.info("Stopping; press Ctrl-C again to stop at once")
    drain(servers, sockets, service.drain_seconds)
    log.info("Stopped")
    log_writer.flush()


def drain(servers, sockets, seconds):
    """Accept nothing more; answer what has been accepted, for this long, and close each connection once it is idle."""
    for server in servers:
        for _ in range(server.adj.backlog):
            server.handle_accept()
        wasyncore.dispatcher.close(server)  # not server.close(), after which nothing could wake the loop
    start, channels = time.monotonic(), True
    while channels and time.monotonic() - start < seconds:
        sockets.poll(servers, 0.05)
        channels = [channel for server in servers for channel in server.active_channels.values()]
        for channel in channels:
            is_done = channel.is_idle or channel.rest is not None
            channel.will_close |= is_done and time.monotonic() - start > LINGER_SECONDS
            sockets.changed.append(channel)


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


@contextlib.contextmanager
def exit_on_signals():
    """Let SIGTERM and Ctrl-C end the process during the block.

    By default, they do not end process 1, as in a container. Python's own handlers would wait for what the block waits
    for, such as a database's lock; so the system writes the signal's number to a socket, where a thread waits for it.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def wait():
        with reader:
            number = reader.recv(1)
        if number:
            os._exit(128 + number[0])

    old = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.set_wakeup_fd(writer.fileno())
    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in old.items():
            signal.signal(number, handler)
        writer.close()
