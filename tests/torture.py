"""Fault tests that take minutes: real servers that are killed, stopped, overloaded, or run out of disk.

python tests/torture.py              run every part, and print a table of the results
python tests/torture.py kill disk    run only these parts

Each part runs `python course_api.py` on 127.0.0.1, on a database in a folder of its own. They need Linux, for /proc,
prlimit and socket errors; `outage` and `rolling` also need PostgreSQL's server, and `rolling` needs nginx. `outages`
needs both servers and root, and prints a table of its own. The exit status is 1 if any part failed.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import functools
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import resource
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from types import SimpleNamespace
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import outages
import processes
from servers import find_ports, is_listening, nginx, own_postgres, wait_until

from server import LINGER_SECONDS

SETTINGS = {"TOKEN_SECONDS": "100000", "LOGIN_LIMIT": "1000000/minute"}
ONE, PAGE = "/courses/CSE115", "/courses?limit=50&sort=-name"
ENDS = (OSError, http.client.HTTPException)  # what a client gets from a server that is killed

# -- The server and its clients ----------------------------------------------------------------------------------------


def sqlite_url(folder):
    return f"sqlite:///{folder}/courses.db"


def run_seed(folder, *arguments, url=""):
    """Run seed.py to its end, on the database in a folder or at a URL."""
    processes.run_program(folder, "seed.py", *arguments, DATABASE_URL=url or sqlite_url(folder)).check_returncode()


class Answer(NamedTuple):
    method: str
    status: int
    seconds: float
    headers: http.client.HTTPMessage = None
    body: bytes = b""


class Server(processes.Server):
    """`python course_api.py` in a process of its own, with what it has answered."""

    def __init__(self, folder, url="", **settings):
        super().__init__(folder, DATABASE_URL=url or sqlite_url(folder), **SETTINGS, **settings)
        self.address, self.answers, self.token = self.url.removeprefix("http://"), [], self.log_in()

    def statuses(self, *methods):
        """Return how often each status was answered to these methods."""
        return collections.Counter(answer.status for answer in self.answers if answer.method in methods)

    def times(self, *methods):
        """Return how long responses to these methods took."""
        seconds = sorted(answer.seconds for answer in self.answers if answer.method in methods)
        hundredths = statistics.quantiles(seconds, n=100)
        p50, p99, highest = (1000 * value for value in (hundredths[49], hundredths[98], seconds[-1]))
        return f"p50 {p50:.1f}, p99 {p99:.1f}, slowest {highest:,.0f} ms"

    def end(self, number=signal.SIGKILL):
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        return self.wait()


@contextlib.contextmanager
def serving(folder, **options):
    """Run a server for the block; raise AssertionError if its log has a traceback."""
    with contextlib.closing(Server(folder, **options)) as server:
        yield server
        assert not any("Traceback" in line for line in server.output), "\n".join(server.output[-100:])


class Client:
    """A keep-alive connection to a server."""

    def __init__(self, server, number=0):
        self.server, self.number = server, number
        self.connection = http.client.HTTPConnection(server.address, timeout=60)
        self.headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.token}"}

    def send(self, method, path, body=None, headers=()):
        self.begin = time.monotonic()
        self.connection.request(method, path, body and json.dumps(body), self.headers | dict(headers))

    def receive(self, method):
        """Return the Answer to what was sent; the server keeps it without its body."""
        response = self.connection.getresponse()
        body = response.read()
        kept = Answer(method, response.status, time.monotonic() - self.begin)
        self.server.answers.append(kept)
        return kept._replace(headers=response.headers, body=body)

    def ask(self, method, *request):
        self.send(method, *request)
        return self.receive(method)

    def read(self, path):
        """Return the body of a response that must be 200."""
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.body

    def read_all(self):
        """Return all courses as dicts."""
        return json.loads(self.read("/courses"))["courses"]


@contextlib.contextmanager
def clients(server, number, work, ends=()):
    """Let so many clients call work(client) over and over for the block; an exception of `ends` ends a client.

    Yields a list, at last of what each client's calls have returned.
    """
    stop, results = threading.Event(), []

    def run(index):
        client, returned = Client(server, index), []
        with contextlib.suppress(*ends):
            while not stop.is_set():
                returned.append(work(client))
        return returned

    with concurrent.futures.ThreadPoolExecutor(max(number, 1)) as pool:
        futures = [pool.submit(run, index) for index in range(number)]
        try:
            yield results
        finally:
            stop.set()
            results += [future.result() for future in futures]


def wait_for_answers(server, number=100, seconds=20):
    """Wait until a server has given so many more answers."""
    before = len(server.answers)
    wait_until(lambda: len(server.answers) >= before + number, seconds)


# -- What was written, and whether it is stored ------------------------------------------------------------------------


class Ledger:
    """The courses that writers add and change. A name is a version number, and a code belongs to one writer.

    A write that is answered 503, or not read by the server, must not be stored; one without an answer may be.
    """

    def __init__(self):
        self.sent, self.acknowledged = {}, {}  # the last version of each code
        self.codes = collections.defaultdict(list)  # of each writer
        self.numbers = itertools.count()

    def write(self, client, ask=None):
        """Add a course, or change one of the client's last, with ask(method, path, body); return the Answer or None."""
        ask, codes = ask or client.ask, self.codes[client.number]
        change = codes and random.random() < 0.5
        code = random.choice(codes[-20:]) if change else f"W{next(self.numbers)}"
        version = self.sent.get(code, 0) + 1
        self.sent[code] = version
        body = {"name": str(version), "instructor": "Sisyphus"}
        answer = ask("PUT", f"/courses/{code}", body) if change else ask("POST", "/courses", body | {"code": code})
        if answer and answer.status in (201, 204):
            self.acknowledged[code] = version
            if not change:
                codes.append(code)
        else:
            assert not answer or (answer.status == 503 and answer.headers["Retry-After"]), answer
            self.sent[code] = version - 1
            if change:  # leave the course alone, for the write may still be carried out
                codes.remove(code)
        return answer

    def write_at_once(self, client):
        """Write what no database may refuse; return nothing."""
        answer = self.write(client)
        assert answer.status != 503, answer

    def compare(self, courses, may_have_more=False):
        """Check stored courses, dicts, for all that was acknowledged, and unless they may have more, nothing else."""
        stored = {course["code"]: int(course["name"]) for course in courses if course["code"].startswith("W")}
        lost = [code for code, version in self.acknowledged.items() if stored.get(code, 0) < version]
        assert not lost, f"{len(lost)} acknowledged writes are lost, such as {lost[:5]}"
        invented = [code for code, version in stored.items() if self.sent.get(code, 0) < version]
        assert may_have_more or not invented, f"{len(invented)} refused writes are stored, such as {invented[:5]}"


def read_courses(folder):
    """Return the courses of the database in a folder as dicts; raise AssertionError if it is damaged."""
    with contextlib.closing(sqlite3.connect(folder / "courses.db", timeout=60)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [{"code": code, "name": name} for code, name in database.execute("SELECT code, name FROM courses")]


# -- The parts ---------------------------------------------------------------------------------------------------------


def kill(folder, rounds=20):
    """SIGKILL while 8 clients write"""
    ledger, total = Ledger(), 0
    for _ in range(rounds):
        with serving(folder) as server:
            with clients(server, 8, ledger.write_at_once, ENDS):
                time.sleep(random.uniform(0.2, 1))
                server.end()
            total += len(server.answers)
        with serving(folder) as server:
            ledger.compare(Client(server).read_all())
            ledger.compare(read_courses(folder))
    return f"{rounds} rounds, {total:,} acknowledged writes, 0 lost"


def term(folder, rounds=10):
    """SIGTERM while 16 clients read and write, and 48 others come back from a pause as the server ends

    A request is dropped if the server read it, but closed the connection without a whole response. Linux tells these
    from the others: if the server has not read everything that was sent, or had closed before, the client's socket
    gets a reset (ECONNRESET; or EPIPE, kept in SO_ERROR). Such a request may be sent again (RFC 9110 §9.2.2), and must
    not have been carried out.
    """
    ledger, count, exits, signalled = Ledger(), collections.Counter(), [], threading.Event()

    def ask(client, *request):
        """Return the Answer, or None; count how the request ended."""
        if not client.connection.sock:
            client.connection.connect()
        sock, end = client.connection.sock, "not read"
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            client.send(*request)
            begun = sock.recv(1, socket.MSG_PEEK)
            end = "not read" if not begun and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "dropped"
            answer = client.receive(request[0])
            count["answered"] += 1
            return answer
        count[end] += 1
        client.connection.close()
        return None

    def work(client):
        if client.number >= 16 and signalled.wait(random.uniform(0, 2)):
            time.sleep(LINGER_SECONDS + random.uniform(0, 0.03))
        if random.random() < 0.5:
            ledger.write(client, functools.partial(ask, client))
        else:
            answer = ask(client, "GET", random.choice((ONE, PAGE)))
            assert not answer or answer.status == 200, answer

    for _ in range(rounds):
        signalled.clear()
        with serving(folder) as server, clients(server, 64, work, [ConnectionRefusedError]):
            time.sleep(random.uniform(0.5, 1.5))
            begin = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            signalled.set()
            assert server.process.wait(20) == 0
            exits.append(time.monotonic() - begin)
    seen = f"{rounds} rounds, {count['answered']:,} requests answered, {count['dropped']} dropped, {count['not read']} "
    seen += f"sent too late and not read, slowest exit {max(exits):.2f} s"
    assert not count["dropped"] and max(exits) < 5, seen
    ledger.compare(read_courses(folder))
    return seen


def mixed(folder):
    """64 clients read and write for a minute"""
    counters, ledger = [f"COUNTER{number}" for number in range(8)], Ledger()

    def count(client):
        """Increment a counter, and write something else; return whether the increment was acknowledged."""
        path = f"/courses/{counters[client.number % 8]}"
        course = client.ask("GET", path)
        change = {"name": str(int(json.loads(course.body)["name"]) + 1), "instructor": "Nobody"}
        answer = client.ask("PUT", path, change, {"If-Match": course.headers["ETag"]})
        assert answer.status in (204, 412), answer
        ledger.write_at_once(client)
        return answer.status == 204

    def read(client):
        client.read(random.choice((ONE, PAGE, "/courses?q=neural&limit=9")))

    with serving(folder) as server:
        for code in counters:
            Client(server).ask("POST", "/courses", {"code": code, "name": "0", "instructor": "Nobody"})
        with clients(server, 32, read), clients(server, 32, count) as results:
            time.sleep(60)
    courses, done = read_courses(folder), [sum(counted) for counted in results]
    stored = {course["code"]: int(course["name"]) for course in courses if course["code"] in counters}
    assert stored == {code: sum(done[number::8]) for number, code in enumerate(counters)}
    ledger.compare(courses)
    return (
        f"{len(server.answers):,} requests, no 5xx; reads {server.times('GET')}; writes {server.times('PUT', 'POST')}; "
        f"8 counters at {sum(done):,} in all, after as many increments and {server.statuses('PUT')[412]:,} times 412"
    )


def connections(folder):
    """1,500 keep-alive connections at once, more than the 1,024 open files that most systems allow at first"""
    with serving(folder) as server, contextlib.ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for this process, not for the server
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        opened, begin = [Client(server) for _ in range(1500)], time.monotonic()
        for client in opened:
            client.connection.connect()
            client.connection.auto_open = False
            stack.callback(client.connection.close)
        for _ in range(3):
            for client in opened:
                client.send("GET", ONE)
            for client in opened:
                answer = client.receive("GET")
                assert answer.status == 200 and b"CSE115" in answer.body, answer
        return f"{len(opened):,} connections, each with 3 answers, in {time.monotonic() - begin:.1f} s"


def memory(folder):
    """Memory after 20,000 and after 200,000 requests"""
    requests = (  # each with the status that it should have
        (200, "GET", ONE),
        (200, "GET", PAGE),
        (204, "PATCH", "/courses/CSE465", {"name": "Introduction to neural networks"}),
        (404, "GET", "/courses/NONE"),
        (400, "PATCH", "/courses/CSE465", {"name": 1}),
        (400, "GET", "/courses?page=2"),
    )

    def work(client):
        turn = next(turns)
        status, *request = requests[turn % len(requests)]
        if turn % 50 == 0:  # a new connection, and a token that is not ours
            client.connection.close()
            status, request = 401, ("GET", ONE, None, {"Authorization": f"Bearer {server.token}{random.random()}"})
        assert client.ask(*request).status == status, request

    run_seed(folder, "random", "1000")
    turns = itertools.count()
    with serving(folder) as server, clients(server, 8, work):
        wait_for_answers(server, 20_000, seconds=600)
        early = resident(server)
        wait_for_answers(server, 180_000, seconds=600)
        late = resident(server)
        seen = f"{early:.1f} MiB resident after 20,000 requests, {late:.1f} MiB after 200,000"
        assert late < early * 1.1, seen
    return seen


def resident(server):
    """Return how much memory a server has now, in MiB."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s*(\d+) kB", status)[1]) / 1024


STRANGE_ROUTES = [
    *(f"{method} /courses" for method in ("GET", "POST", "PUT", "OPTIONS")),
    *(f"{method} /courses/CSE115" for method in ("GET", "PUT", "PATCH", "DELETE")),
    *(
        "POST /login",
        "POST /token",
        "PUT /password",
        "GET /health",
        "GET /docs",
        "GET /docs/swagger_bundle.js",
        "POST /nothing",
    ),
]
CHUNK = b"2000\r\n" + b"[" * 8192 + b"\r\n"
STRANGE_REQUESTS = {  # of each kind: what is in the target and in the headers besides, and the body
    "announced": ("", "Content-Length: 16777216\r\n", b"[" * 131072),
    "chunked": ("", "Transfer-Encoding: chunked\r\n", CHUNK * 16),
    "unfinished": ("", "Content-Length: 65536\r\n", b"[" * 65535),
    "unfinished chunks": ("", "Transfer-Encoding: chunked\r\n", (CHUNK * 8)[:-1]),
    "endless chunk lines": ("", "Transfer-Encoding: chunked\r\n", b"0" * 65535),
    "long target": ("?q=" + "x" * 31_000, "Content-Length: 8192\r\n", b"[" * 8191),
    "headers": ("", "Content-Length: 8192\r\n" + "".join(f"X{n}: {'y' * 300}\r\n" for n in range(96)), b"[" * 8191),
    "many headers": ("", "".join(f"X{n}: y\r\n" for n in range(3000)), b""),
}


def strangers(folder):
    """1,990 connections without a token: too large, chunked and unfinished requests on every route, nothing read"""

    def send_all(sockets, datas):
        """Send a part to each in turn, for up to a minute; a server may close before it has read everything."""
        waiting, deadline = dict(zip(sockets, map(memoryview, datas), strict=True)), time.monotonic() + 60
        while waiting and time.monotonic() < deadline:
            for connection, data in list(waiting.items()):
                with contextlib.suppress(BlockingIOError):
                    try:
                        waiting[connection] = data[connection.send(data[:16384]) :]
                    except ConnectionError:
                        waiting[connection] = b""
                if not waiting[connection]:
                    del waiting[connection]

    def measure(datas):
        """Send each on a connection of its own; return the memory that the server then has."""
        with contextlib.ExitStack() as stack:
            sockets = []
            for _ in datas:
                sockets.append(stack.enter_context(socket.create_connection(address, 20)))
                sockets[-1].setblocking(False)
            client = Client(server)
            send_all(sockets, datas)
            client.read("/health")
            return resident(server)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = {}
    requests = {
        kind: [
            f"{route}{target} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{headers}\r\n".encode() + body
            for route in itertools.islice(itertools.cycle(STRANGE_ROUTES), 1990)
        ]
        for kind, (target, headers, body) in STRANGE_REQUESTS.items()
    }
    unread = [f"{route} HTTP/1.1\r\nHost: a\r\n\r\n" for route in STRANGE_ROUTES if "GET" in route]
    requests["unread"] = ["".join(unread * 20).encode()] * 1990
    for kind, datas in requests.items():
        with serving(folder) as server:
            address = ("127.0.0.1", int(server.address.rpartition(":")[2]))
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for this process, not for the server
            seen[kind] = measure(datas)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    result = ", ".join(f"{kind} {size:.0f}" for kind, size in seen.items()) + " MiB resident"
    assert max(seen.values()) < 250, result
    return result


def log(folder, number=30_000):
    """Nobody reads the log"""
    (port,) = find_ports(1)
    options = processes.process_options(folder, {"PORT": str(port), "DATABASE_URL": sqlite_url(folder)})
    command = [*processes.PYTHON, processes.ROOT / "course_api.py"]
    server = SimpleNamespace(address=f"127.0.0.1:{port}", token="", answers=[])

    def read(client):
        answer = client.ask("GET", ONE)
        assert answer.status == 401, answer

    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        try:
            wait_until(lambda: is_listening(f"http://{server.address}"))
            with clients(server, 8, read):
                wait_for_answers(server, number, seconds=120)
            Client(server).read("/health")
            requests, lines, lost = len(server.answers) - 1, 0, 0  # /health has no line
            while lines + lost < requests:
                line = process.stdout.readline()
                lines += " GET " in line
                lost += int((re.search(r"([\d,]+) lines lost", line) or [0, "0"])[1].replace(",", ""))
            assert lines + lost == requests, (lines, lost, requests)
            with clients(server, 8, read):
                wait_for_answers(server, number, seconds=120)
            begin = time.monotonic()
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    return (
        f"{requests:,} requests answered, {lines:,} lines written and {lost:,} counted as lost once the log was read; "
        f"SIGTERM after {number:,} more: exit in {time.monotonic() - begin:.1f} s"
    )


def logins(folder):
    """4 clients read, without and with 50 logins a second"""
    turns = itertools.count()

    def read(client):
        client.read(ONE)

    def log_in(client):
        """Log in at the next fiftieth of a second, every fourth time with the right password."""
        turn = next(turns)
        time.sleep(max(begin + turn / 50 - time.monotonic(), 0))
        name = "faisal" if turn % 4 == 0 else f"user {turn}"
        answer = client.ask("POST", "/login", {"username": name, "password": "faisal"})
        assert answer.status in (200, 400, 429, 503), answer

    seen = []
    with serving(folder) as server:
        for number in (0, 50):
            server.answers, begin = [], time.monotonic()
            with clients(server, 4, read), clients(server, number, log_in):
                time.sleep(15)
            seen.append(f"{server.statuses('GET')[200] / 15:,.0f} reads a second ({server.times('GET')})")
    answers = ", ".join(f"{number} times {status}" for status, number in sorted(server.statuses("POST").items()))
    return f"{' without, '.join(seen)} with logins, which were answered {answers}"


def disk(folder):
    """The disk is full, and then it is not"""
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder]
    mounted = os.getuid() == 0 and not subprocess.run(command, capture_output=True).returncode
    how = "a full tmpfs of 3 MiB" if mounted else "RLIMIT_FSIZE, since mounting is not permitted"
    ledger, refused = Ledger(), 0

    def limit_files(size):
        """Let no file of the server grow beyond a size."""
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    with contextlib.ExitStack() as stack:
        if mounted:
            stack.callback(subprocess.run, ["umount", folder], check=True)
        run_seed(folder)
        server = stack.enter_context(serving(folder))
        client = Client(server)
        for _ in range(100):
            ledger.write_at_once(client)
        if mounted:
            with open(folder / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        else:
            limit_files(os.path.getsize(folder / "courses.db-wal"))
        while refused < 50:
            refused += ledger.write(client).status == 503
            for path in (ONE, PAGE, "/health"):
                client.read(path)
            assert len(server.answers) < 20_000, "the disk is full, and writes succeed"
        (folder / "filler").unlink(missing_ok=True)
        limit_files(resource.RLIM_INFINITY)
        for _ in range(100):
            ledger.write_at_once(client)
        ledger.compare(read_courses(folder))
        reads, writes = server.statuses("GET")[200], server.statuses("POST", "PUT")
        return (
            f"{how}: {refused} writes answered 503, {reads} reads 200; with space again writes succeed at once; "
            f"{writes[201] + writes[204]} acknowledged writes, 0 lost"
        )


def locked(folder):
    """Another program locks the database for longer than a write waits"""
    ledger = Ledger()
    with serving(folder) as server, contextlib.closing(sqlite3.connect(folder / "courses.db")) as other:
        writers, reader = [Client(server, number) for number in range(8)], Client(server)
        other.isolation_level = None
        other.execute("BEGIN IMMEDIATE")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            writes = [pool.submit(ledger.write, writer) for writer in writers]
            while not all(write.done() for write in writes):
                reader.read(ONE)
        assert server.statuses("POST") == {503: 8}
        seen = f"8 writes answered 503 ({server.times('POST')}), {server.statuses('GET')[200]:,} reads meanwhile 200 "
        seen += f"({server.times('GET')}); then writes succeed at once"
        other.execute("COMMIT")
        for writer in writers:
            ledger.write_at_once(writer)
        ledger.compare(read_courses(folder))
        return seen


def outage(folder):
    """8 clients, while their PostgreSQL stops and crashes, for three seconds each, five times in turn"""
    ledger, returns = Ledger(), []

    def work(client):
        ledger.write(client)
        assert client.ask("GET", ONE).status in (200, 503)

    with own_postgres() as postgres, contextlib.ExitStack() as stack:
        run_seed(folder, url=postgres.url)
        server = stack.enter_context(serving(folder, url=postgres.url))
        with clients(server, 8, work):
            for mode in ("fast", "immediate") * 5:
                time.sleep(1)
                postgres.stop(mode)
                time.sleep(3)
                postgres.start()
                client, begin = Client(server), time.monotonic()
                while client.ask("GET", ONE).status == 503:
                    pass
                returns.append(time.monotonic() - begin)
        # A write whose connection broke is answered 503, and may be stored all the same.
        ledger.compare(client.read_all(), may_have_more=True)
        refused = [answer.seconds for answer in server.answers if answer.status == 503]
        seen = f"{len(refused):,} of {len(server.answers):,} requests answered 503, within {max(refused):.2f} s; "
        seen += (
            f"200 again after {max(returns):.2f} s at most; {len(ledger.acknowledged):,} acknowledged courses, 0 lost"
        )
        assert max(refused) < 2, seen
    return seen


def restore(folder, rounds=20):
    """`seed.py backup` and `restore` while 8 clients write, and a restore over the journal of a killed server"""
    numbers = itertools.count()

    def add(client):
        """Add a course, and read; return when the course was sent and when acknowledged, and its code."""
        code, begin = f"R{next(numbers)}", time.monotonic()
        answer = client.ask("POST", "/courses", {"code": code, "name": "Later", "instructor": ""})
        assert answer.status == 201, answer
        end = time.monotonic()
        client.read(PAGE)
        return begin, end, code

    def codes(courses):
        return {course["code"] for course in courses}

    with serving(folder) as server:
        for number in range(rounds):
            copy = folder / f"copy{number}"
            copy.mkdir()
            with clients(server, 8, add) as before:
                begin_backup = time.monotonic()
                run_seed(folder, "backup", copy / "courses.db")
            expected = codes(read_courses(copy))
            assert expected >= {code for part in before for _, end, code in part if end < begin_backup}
            run_seed(folder, "random", "3000", "--seed", str(number + 2))
            with clients(server, 8, add) as after:
                wait_for_answers(server)
                begin = time.monotonic()
                run_seed(folder, "restore", copy / "courses.db")
                end = time.monotonic()
                wait_for_answers(server)
            stored = codes(read_courses(folder))
            assert stored == codes(Client(server).read_all())
            for part in after:
                assert not stored & {code for _, acknowledged, code in part if acknowledged < begin}
                assert stored >= {code for begun, _, code in part if begun > end}
                kept = [code in stored for *_, code in part]
                assert kept == sorted(kept), "a write is lost that was acknowledged after one that is kept"
            assert stored == expected | (stored & {code for part in after for *_, code in part})
        assert server.statuses("GET", "POST").keys() == {200, 201}
        with clients(server, 8, add, ENDS):
            wait_for_answers(server)
            server.end()
        assert os.path.getsize(folder / "courses.db-wal") > 0
        run_seed(folder, "restore", copy / "courses.db")
        assert codes(read_courses(folder)) == expected
        return (
            f"{rounds} rounds beside {len(server.answers):,} requests, none failed; each brought back the whole "
            "backup and kept what was acknowledged afterwards; so did a restore over a journal"
        )


def outages_by_kind(folder):
    """Every kind of outage, on each of the databases"""
    table = ["| database | cause | answer | log | serves again after |", "|---|---|---|---|---:|"]
    slowest = 0
    for database, make in outages.SITES.items():
        with make() as site:
            run_seed(folder, url=site.url)
            with serving(folder, url=site.url) as server:
                bearer = {"Authorization": f"Bearer {server.token}"}
                for cause in (cause for cause in outages.CAUSES if cause.database == database):
                    (status, headers, _), (line,), seconds = outages.suffer(server, bearer, site, cause)
                    assert (status, headers["Retry-After"]) == (503, "1")
                    slowest = max(slowest, seconds)
                    table.append(
                        f"| {database} | {cause.name} | {status} | `{line.partition(' ')[2]}` | {seconds:.1f} s |"
                    )
    print(*table, sep="\n")
    return f"{len(table) - 2} outages, each answered 503 and logged in one line; served again within {slowest:.1f} s"


def rolling(folder, rounds=10):
    """3 copies behind nginx on one PostgreSQL, killed and then replaced by SIGTERM in turn, while 6 clients work"""
    ledger, ports, seen = Ledger(), find_ports(3), {}

    def ask(client, *request):
        """Return the Answer, or None if the copy was killed in the middle of it."""
        try:
            return client.ask(*request)
        except http.client.IncompleteRead:
            client.connection.close()
            return None

    def work(client):
        """Write, and read the write back; every other client opens a connection for each request."""
        answer = ledger.write(client, functools.partial(ask, client))
        codes = ledger.codes[client.number]
        if codes and answer and answer.status != 503:
            course = ask(client, "GET", f"/courses/{codes[-1]}")
            if course and course.status != 503:
                assert course.status == 200, course
                assert int(json.loads(course.body)["name"]) >= ledger.acknowledged[codes[-1]]
        if client.number % 2:
            client.connection.close()

    with own_postgres() as postgres, nginx(folder, ports) as url, contextlib.ExitStack() as stack:
        run_seed(folder, url=postgres.url)
        copies = {port: Server(folder, postgres.url, PORT=str(port)) for port in ports}
        stack.callback(lambda: [copy.close() for copy in copies.values()])
        for number in (signal.SIGKILL, signal.SIGTERM):
            proxy = SimpleNamespace(address=url.removeprefix("http://"), token=copies[ports[0]].token, answers=[])
            with clients(proxy, 6, work):
                for port in ports * rounds:
                    wait_for_answers(proxy)
                    assert copies[port].end(number) == (0 if number == signal.SIGTERM else -number)
                    copies[port] = Server(folder, postgres.url, PORT=str(port))
            ledger.compare(Client(proxy).read_all(), may_have_more=True)
            failed = collections.Counter(answer.method for answer in proxy.answers if answer.status == 503)
            seen[number] = f"{len(proxy.answers):,} requests, of which failed: {dict(failed) or 'none'}"
            # nginx does not repeat a POST that a copy may have carried out (RFC 9110 §9.2.2).
            assert number == signal.SIGKILL or failed.keys() <= {"POST"}, seen[number]
    return (
        f"{3 * rounds} copies killed: {seen[signal.SIGKILL]}; {3 * rounds} replaced: {seen[signal.SIGTERM]}; "
        f"{len(ledger.acknowledged):,} acknowledged courses, 0 lost"
    )


PARTS = (kill, term, mixed, connections, memory, strangers, log, logins, restore, disk, locked, outage)
PARTS += (outages_by_kind, rolling)


def main():
    """Run the parts that the command line names, and print the table."""
    parts = {part.__name__.partition("_")[0]: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help=", ".join(parts))
    chosen = parser.parse_args().names or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"there is no {', '.join(unknown)}; use {', '.join(parts)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))  # what most systems give a process
    rows, failed = [], False
    for name in chosen:
        title, begin, result = parts[name].__doc__.splitlines()[0], time.monotonic(), "ok"
        with tempfile.TemporaryDirectory(prefix="course-api-") as folder:
            try:
                run_seed(folder)
                seen = parts[name](pathlib.Path(folder))
            except Exception as error:  # noqa: BLE001 (whatever it is, the others still run)
                traceback.print_exc()
                seen, result, failed = f"{type(error).__name__}: {error}", "FAILED", True
        print(f"{name}: {result}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
        rows.append(f"| {name}: {title} | {' '.join(seen.split())} | {result} |")
    print("| fault test | result | |", "|---|---|---|", *rows, sep="\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
