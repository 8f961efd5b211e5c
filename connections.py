"""What waitress does with a connection: reads requests, stricter than it would, and sends responses, errors in JSON.

Private parts of waitress are touched here, in loop.py and in server.py only, each with the reason.
"""

import io
import logging
import re
import socket
import time
from typing import NamedTuple

import msgspec
from waitress import receiver
from waitress.buffers import ReadOnlyFileBasedBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import WSGITask
from waitress.utilities import BadRequest, Error

from logs import log_request
from settings import URL_PREFIX

MAX_BLANKS = 1000  # in the headers of a request, for which waitress takes quadratic time
MAX_HEADERS = 100  # of a request; each takes much more memory than its text
MAX_LARGE = 100  # bodies of more than LARGE_BODY, of which 2,000 would take too much memory
LARGE_BODY = 8 * 1024  # bytes; those of logins and of single courses are smaller
MAX_CHUNK_LINE = 1024  # bytes of a chunk's size with its extensions, and of the trailer: quadratic time, too
TLS_HANDSHAKE = b"\x16\x03"  # the beginning of what a client sends to https:// (RFC 8446 §5.1)
STALL_SECONDS = 30  # a client may pause within a request or a response
REQUEST_SECONDS = 60  # a request that is no large upload may take to arrive


# -- Requests ----------------------------------------------------------------------------------------------------------


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
    is_tried = False  # whether the app has been asked together with other requests

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


# -- Responses ---------------------------------------------------------------------------------------------------------


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


# -- Connections -------------------------------------------------------------------------------------------------------


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
        """Send, and read the next request if it is here already and the client has read the response before it."""
        super().handle_write()
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
