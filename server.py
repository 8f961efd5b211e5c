"""waitress, with what it lets an application add: who answers which request, limits, a graceful stop."""

import contextlib
import errno
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import NamedTuple

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from connections import STALL_SECONDS, Channel, Task
from logs import log_writer
from loop import Sockets
from settings import HOST, PORT, THREADS, URL_PREFIX

MAX_CONNECTIONS = 2000
MAX_GROUP = 32  # writes in one commit
IDLE_SECONDS = 150  # a connection stays open between requests; proxies keep theirs for up to 120
CROWDED_SECONDS = 5  # a client may pause, once nine tenths of the connections are in use
WAITRESS_OPTIONS = {
    "channel_timeout": IDLE_SECONDS,
    "cleanup_interval": 5,  # seconds between looks for what is idle
    "max_request_header_size": 32 * 1024,  # bytes
    "max_request_body_size": 10**4300,  # bytes, more than Python reads from text; connections.Parser judges
    "inbuf_overflow": 2**30,  # bytes; more would go to a file, and the disk may be read-only
    "outbuf_overflow": 2**30,
    "outbuf_high_watermark": 2**30,  # bytes; above it, a thread would wait until its client reads
    "ident": None,  # no Server header
    "clear_untrusted_proxy_headers": False,  # the app reads the only one that counts
}
SWITCH_SECONDS = 0.0005  # between threads; with Python's 5 ms, reads wait ten times as long beside an upload (measured)
LINGER_SECONDS = 0.5  # after SIGTERM, open connections may still send a request
log = logging.getLogger("course_api")
stopping = threading.Event()


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


class Server(TcpWSGIServer):
    """Leaves one indexed read of SQLite to the main thread, which reads all requests, and the rest to other threads.

    Handing such a request, and the interpreter's lock, to another thread takes longer than the request (measured).
    Logins, which wait for each other, have threads of their own. All large uploads share one thread, and so do all
    writes of SQLite: in several threads, fewer are stored (measured), and reads wait while a write is locked.
    """

    channel_class = Channel
    gave_up = 0  # when a queued request was last answered 503, in Unix time; those behind it would wait as long again

    def __init__(self, service, login_dispatcher, upload_dispatcher, queue_dispatcher, *args, **options):
        super().__init__(service.app, *args, **options)
        self.service, self.login_dispatcher = service, login_dispatcher
        self.upload_dispatcher, self.queue_dispatcher = upload_dispatcher, queue_dispatcher

    def handle_accept(self):
        """Accept all who wait; waitress accepts one in each round of the loop, which is long where many are served."""
        known = -1
        while self.readable() and len(self._map) > known:
            known = len(self._map)
            super().handle_accept()

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

        The disk takes as long for one commit as for many: 16 clients store 1.4 times as much (measured). No answer is
        sent before the commit. If anything fails, nothing is kept, and each request is answered alone.
        """
        with self.queue_dispatcher.lock:
            behind = list(itertools.islice(self.queue_dispatcher.queue, MAX_GROUP - 1))
        channels = [one for one in (channel, *behind) if one.connected and not one.requests[0].is_tried]
        tasks = [Task(one, one.requests[0]) for one in channels]
        if len(tasks) > 1:
            for task in tasks:
                task.request.is_tried = True
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
            self._map.quick.append(channel)
        elif path in self.service.login_paths:
            self.login_dispatcher.add_task(channel)
        elif request.is_upload:
            self.upload_dispatcher.add_task(channel)
        elif not request.error and self.service.is_queued(request.command):
            request.is_queued = True
            self.queue_dispatcher.add_task(channel)
        else:
            super().add_task(channel)


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
        server.handle_accept()
        wasyncore.dispatcher.close(server)  # not server.close(), after which nothing could wake the loop
    start, channels = time.monotonic(), True
    while channels and time.monotonic() - start < seconds:
        sockets.poll(servers, 0.05)
        channels = [channel for server in servers for channel in server.active_channels.values()]
        for channel in channels:
            is_done = channel.is_idle or channel.rest is not None
            if is_done and time.monotonic() - start > LINGER_SECONDS:
                channel.will_close = True
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
