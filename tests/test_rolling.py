"""The whole as it would run: three copies of the API behind nginx, on one PostgreSQL and one Redis, with clients.

python tests/test_rolling.py [ROUNDS]    do so many rounds of it, and print what was seen
"""

import collections
import concurrent.futures
import contextlib
import http.client
import itertools
import json
import os
import pathlib
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import psycopg2
import pytest
import redis

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
from conftest import PYTHON, ROOT, Server
from servers import POSTGRES_URL, ask_server, find_ports, new_database
from torture import threads

REDIS_URL = "redis://127.0.0.1:6379/7"
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
COPIES, CLIENTS, COURSES = 3, 6, 8  # courses that a client has in hand
AWAY = {502, 503, 504}  # what a proxy may answer while a copy of the API is gone

# -- nginx, and the copies of the API ----------------------------------------------------------------------------------


def configure(folder, port, copies):
    """Write the project's nginx.conf to a folder, for nginx and copies of the API at these ports; return its path."""
    conf = (ROOT / "deploy/nginx.conf").read_text()
    for pattern, replacement in (
        (r"server api:5000 resolve(.*);", "\n".join(rf"server 127.0.0.1:{copy}\1;" for copy in copies)),
        (r"listen 8080;", f"listen 127.0.0.1:{port};"),
        (r" /tmp/", f" {folder}/"),
    ):
        conf, found = re.subn(pattern, replacement, conf)
        assert found, pattern
    path = pathlib.Path(folder, "nginx.conf")
    path.write_text(conf)
    return path


@contextlib.contextmanager
def proxy(folder, copies):
    """Run nginx in front of copies of the API at these ports for the block; yield its address. Its log is nginx.log."""
    (port,) = find_ports(1)
    command = [NGINX, "-e", "stderr", "-c", configure(folder, port, copies), "-g", "daemon off; user root;"]
    with (
        open(pathlib.Path(folder, "nginx.log"), "w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            while process.poll() is None:
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
                time.sleep(0.01)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


class Copies:
    """Copies of the API, each at a port of its own, on one database."""

    def __init__(self, folder, database_url):
        self.folder, self.servers = folder, dict.fromkeys(find_ports(COPIES))
        self.settings = {
            "DATABASE_URL": database_url,
            "LIMIT_STORAGE": REDIS_URL,
            "SECRET_KEY": secrets.token_hex(32),
            "TOKEN_SECONDS": "100000",
            "TRUSTED_PROXY": "127.0.0.1",
            "LOG_LEVEL": "WARNING",
        }

    def start(self, port):
        self.servers[port] = server = Server(self.folder, PORT=str(port), **self.settings)
        assert server.url == f"http://127.0.0.1:{port}"

    def start_all(self):
        """Start all at once, on a database that has the dummy user."""
        seed = [*PYTHON, ROOT / "seed.py"]
        subprocess.run(seed, env=os.environ | self.settings, check=True, capture_output=True, timeout=30)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(self.start, self.servers))

    def replace(self, port, number):
        """Stop a copy with a signal, and start another in its place."""
        old = self.servers[port]
        old.process.send_signal(number)
        assert old.wait() == (0 if number == signal.SIGTERM else -number)
        assert not any("Traceback" in line for line in old.output), old.output
        old.close()
        self.start(port)

    def close(self):
        for server in filter(None, self.servers.values()):
            server.close()


@contextlib.contextmanager
def running():
    """Run the whole on a database of its own for the block; yield the copies, nginx's address and a token."""
    with (
        new_database(POSTGRES_URL) as url,
        tempfile.TemporaryDirectory(prefix="course-api-") as folder,
        contextlib.closing(Copies(folder, url)) as copies,
        proxy(folder, copies.servers) as address,
    ):
        copies.start_all()
        with contextlib.closing(http.client.HTTPConnection(address, timeout=30)) as connection:
            login = json.dumps({"username": "faisal", "password": "faisal"})
            connection.request("POST", "/login", login, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            token = answer.read().decode()
        yield copies, address, token


# -- The clients -------------------------------------------------------------------------------------------------------


class Client:
    """Adds, changes and deletes courses of its own, and reads each back at once, for it knows what must be there."""

    def __init__(self, name, fresh, address, token):
        self.name, self.fresh = name, fresh  # whether each request has a connection of its own
        self.connection = http.client.HTTPConnection(address, timeout=30)
        self.headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        self.known = {}  # the names that each code may have by now, None where it may be missing
        self.requests, self.failures = 0, collections.Counter()

    def ask(self, method, path, body=None):
        """Return the status and the body, or None where the API did not answer."""
        self.requests += 1
        if self.fresh:
            self.connection.close()
        try:
            self.connection.request(method, path, body and json.dumps(body), self.headers)
            answer = self.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.connection.close()
            self.failures[f"{method}: {type(error).__name__}"] += 1
            return None
        if answer.status in AWAY:
            self.failures[f"{method}: {answer.status}"] += 1
            return None
        return answer.status, content

    def write(self, code, step):
        """Add a course, change it, replace it or delete it; return whether that was acknowledged."""
        name, path = f"step {step}", f"/courses/{code}"
        course = {"code": code, "name": name, "instructor": self.name}
        method, path, body, good = (
            ("POST", "/courses", course, 201),
            ("PATCH", path, {"name": name}, 204),
            ("PUT", path, course, 204),
            ("DELETE", path, None, 204),
        )[step]
        after = body and name
        answer = self.ask(method, path, body)
        if answer and answer[0] == 400 and method == "DELETE":
            # nginx may send it again, where a copy dies that has deleted the course and not said so.
            self.failures["DELETE: 400"] += 1
            answer = None
        if not answer:
            self.known[code] = {after, *self.known.get(code, {None})}
            return False
        assert answer[0] == good, (method, path, answer)
        self.known[code] = {after}
        return True

    def read(self, code):
        """Read a course, and hold it to what is known."""
        answer = self.ask("GET", f"/courses/{code}")
        if answer:
            status, body = answer
            assert status in (200, 404), answer
            name = json.loads(body)["name"] if status == 200 else None
            assert name in self.known[code], (code, name, self.known[code])

    def read_all(self):
        """Read all courses of this client as one list, and hold them to what is known."""
        answer = self.ask("GET", f"/courses?instructor={self.name}")
        if answer:
            status, body = answer
            assert status == 200, answer
            stored = {course["code"]: course["name"] for course in json.loads(body)["courses"]}
            wrong = [code for code, names in self.known.items() if stored.get(code) not in names]
            assert stored.keys() <= self.known.keys() and not wrong, (wrong, stored, self.known)

    def work(self, stop):
        """Take the courses in hand a step on in turn, and delete every other one at last, until told to stop."""
        numbers, hand = itertools.count(), collections.deque()
        while not stop.is_set():
            number, step = hand.popleft() if len(hand) == COURSES else (next(numbers), 0)
            code = f"{self.name}-{number}"
            acknowledged = self.write(code, step)
            self.read(code)
            if random.random() < 0.1:
                self.read_all()
            # A course in doubt is left alone from then on, for the write may yet be carried out.
            if acknowledged and step < 2 + number % 2:
                hand.append((number, step + 1))


def replace_all(whole, number, phase):
    """Replace every copy by a signal, one after the other, while clients work; return the clients."""
    copies, *way = whole
    clients = [Client(f"{phase}{name}", name % 2, *way) for name in range(CLIENTS)]
    with threads(CLIENTS, lambda index, stop: clients[index].work(stop)):
        for port in copies.servers:
            time.sleep(random.uniform(0.1, 0.4))
            copies.replace(port, number)
        time.sleep(0.1)
    return clients


def do_round(whole, number=0):
    """Kill each copy, then stop each as a rolling update does; return the clients, when all they know is there."""
    killed = replace_all(whole, signal.SIGKILL, f"killed{number}.")
    replaced = replace_all(whole, signal.SIGTERM, f"replaced{number}.")
    for client in killed + replaced:
        failures = client.failures.total()
        client.read_all()
        client.connection.close()
        assert client.failures.total() == failures
    return killed, replaced


def describe(clients):
    """Return how many requests the clients sent, and which of them failed."""
    failures = sum((client.failures for client in clients), collections.Counter())
    requests, courses = (sum(values) for values in zip(*((c.requests, len(c.known)) for c in clients), strict=True))
    named = ", ".join(f"{times} times {failure}" for failure, times in sorted(failures.items()))
    return f"{requests:,} requests for {courses:,} courses, {failures.total()} failed" + (named and f": {named}")


# -- The test ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole():
    if not NGINX:
        pytest.skip("needs nginx: apt-get install nginx")
    try:
        redis.Redis.from_url(REDIS_URL).ping()
        ask_server(POSTGRES_URL, "SELECT 1")
    except (redis.ConnectionError, psycopg2.OperationalError):
        pytest.skip("needs a Redis at 127.0.0.1:6379, and a PostgreSQL there or at POSTGRES_URL")
    with running() as whole:
        yield whole


@pytest.mark.sqlite  # once, that is: its database is PostgreSQL in any case
def test_killed_copies_lose_no_write_and_replaced_ones_fail_no_request(whole):
    killed, replaced = do_round(whole)
    print(f"killed: {describe(killed)}\nreplaced: {describe(replaced)}")
    assert all(client.known for client in killed + replaced)
    assert not any(client.failures for client in replaced)


def main():
    """Print what is seen in so many rounds."""
    killed, replaced = [], []
    with running() as whole:
        for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 20):
            for clients, more in zip((killed, replaced), do_round(whole, number), strict=True):
                clients += more
            print(f"{number + 1} rounds; killed: {describe(killed)}; replaced: {describe(replaced)}", flush=True)
    sys.exit(any(client.failures for client in replaced))


if __name__ == "__main__":
    main()
