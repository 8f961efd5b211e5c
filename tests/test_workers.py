"""The app under granian and gunicorn: the contract again, over real HTTP, and what several processes must share."""

import concurrent.futures
import contextlib
import http.client
import inspect
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import sys
import time
import urllib.parse

import pytest
import redis
import test_conditions
import test_contract_inherited
import test_contract_repaired
import test_lists
import test_many
from conftest import FOLDER, ROOT, Server
from servers import find_ports
from test_contract_inherited import NEW
from test_lists import catalogue  # noqa: F401 (a fixture)
from test_server import connect, read_all
from test_throttle import RIGHT, WRONG
from test_tokens import (  # noqa: F401 (collected here too)
    protected,
    test_a_token_in_the_query_is_good_on_every_protected_route,
    test_no_token_is_turned_away_without_an_error_code,
)

WORKERS = 2
GRANIAN = f"granian --interface wsgi --http 1 --workers {WORKERS} --workers-kill-timeout 10"
# The link to a page may be longer than the 4094 bytes that gunicorn takes by itself.
GUNICORN = f"gunicorn --no-control-socket --workers {WORKERS} --graceful-timeout 10 --limit-request-line 8190"
COMMANDS = {
    "granian": f"{GRANIAN} --blocking-threads 4 course_api:app",
    "gunicorn": f"{GUNICORN} --threads 4 --preload course_api:app",
    "gunicorn-without-preload": f"{GUNICORN} --threads 4 course_api:app",
    "gunicorn-without-threads": f"{GUNICORN} --preload course_api:app",
}
REDIS = "redis://127.0.0.1:6379/8"

# -- Servers -----------------------------------------------------------------------------------------------------------


class Workers(Server):
    """The app under one of the COMMANDS, on a folder's database."""

    def __init__(self, name, folder):
        (port,) = find_ports(1)
        self.url, self.stops = f"http://127.0.0.1:{port}", "Shutting down" if name == "granian" else "signal: term"
        # A line of the access log names the process, the method, the path without the query, and the status.
        gunicorn_log = "--access-logfile - --access-logformat '%(p)s %(m)s %(U)s %(s)s'"
        granian_log = pathlib.Path(folder, "granian.json")
        formats = {"access": {"format": "<%(process)d> %(message)s"}, "generic": {"format": "%(message)s"}}
        granian_log.write_text(json.dumps({"formatters": formats}))
        settings = {
            "PYTHONPATH": str(ROOT),
            "LIMIT_STORAGE": REDIS,
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port} {gunicorn_log}",
            "GRANIAN_PORT": str(port),
            "GRANIAN_LOG_CONFIG": str(granian_log),
            "GRANIAN_LOG_ACCESS_ENABLED": "true",
            "GRANIAN_LOG_ACCESS_FMT": "%(method)s %(path)s %(status)d",
        }
        self.launch([sys.executable, "-m", *COMMANDS[name].split()], folder, settings, start_new_session=True)

    def wait_until_up(self):
        end = time.monotonic() + 30
        while True:
            assert self.process.poll() is None and time.monotonic() < end, self.output
            with contextlib.suppress(OSError):  # nobody listens yet
                assert self.request("/health")[0] == 200
                return
            time.sleep(0.02)

    def who_answered(self, since):
        """Return the numbers of the processes that the access log names, from a line on."""
        return {found[1] for line in self.output[since:] if (found := re.match(r"<(\d+)> [A-Z]+ /", line))}

    def close(self):
        """Kill what is left, the workers too, which a test that fails may leave behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        super().close()


@contextlib.contextmanager
def serving(name, folder):
    with contextlib.closing(Workers(name, folder)) as workers:
        workers.wait_until_up()
        yield workers


class Remote:
    """A WSGI app that is elsewhere: each request goes to a server, on a connection of its own."""

    def __init__(self, url):
        self.address = url.removeprefix("http://")

    def __call__(self, environ, start_response):
        headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
        if "CONTENT_TYPE" in environ:
            headers["Content-Type"] = environ["CONTENT_TYPE"]
        path = urllib.parse.quote(environ["PATH_INFO"], encoding="latin1")
        query = urllib.parse.quote(environ["QUERY_STRING"], encoding="latin1", safe="%&=+")
        body = environ["wsgi.input"].read()
        if body and "CONTENT_LENGTH" not in environ:
            body = iter([body])  # which http.client sends in chunks
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=20)) as connection:
            connection.request(environ["REQUEST_METHOD"], f"{path}?{query}" if query else path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        of_the_connection = ("connection", "transfer-encoding")  # which no WSGI app may set
        kept = [header for header in answer.getheaders() if header[0].lower() not in of_the_connection]
        start_response(f"{answer.status} {answer.reason}", kept)
        return [content]


@pytest.fixture
def counts():
    """The Redis in which the workers count wrong passwords, empty."""
    with redis.Redis.from_url(REDIS) as client:
        try:
            client.flushdb()
        except redis.ConnectionError:
            pytest.skip("needs a Redis at 127.0.0.1:6379")
        yield client


@pytest.fixture(scope="module")
def workers(request):
    """The app under a server, on the database that the tests themselves use; SIGTERM must end it."""
    with serving(request.param, FOLDER.name) as workers:
        yield workers
        workers.process.send_signal(signal.SIGTERM)
        assert workers.wait() == 0


@pytest.fixture
def app(app, workers, counts):
    """What `client` and `stranger` ask."""
    return Remote(workers.url)


@pytest.fixture
def api(app, workers):
    """The same server for plain requests, each on a connection of its own."""
    return workers


# -- The contract ------------------------------------------------------------------------------------------------------

SLOW = "test_a_walk_has_each_course_once_while_others_come_and_go"  # a second each, and of the database alone


def over_http(*modules):
    """Return the tests that ask as a client does, and change nothing inside of the app."""
    found = {}
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            fixtures = set(inspect.signature(function).parameters)
            asks, patches = fixtures & {"client", "stranger", "catalogue"}, fixtures & {"monkeypatch", "open_to"}
            if name.startswith("test_") and name != SLOW and asks and not patches:
                found[f"{name}__{module.__name__}"] = function
    return found


globals().update(over_http(test_conditions, test_contract_inherited, test_contract_repaired, test_lists, test_many))


def pytest_generate_tests(metafunc):
    """Try the contract under two of the servers, and what this file adds under all."""
    if "workers" in metafunc.fixturenames:
        own = metafunc.function.__module__ == __name__
        metafunc.parametrize("workers", COMMANDS if own else ["granian", "gunicorn"], indirect=True, scope="module")


# -- Bodies ------------------------------------------------------------------------------------------------------------


def post_csv(api, framing, body):
    """Return the start of the answer to CSV after which the client sends no more."""
    head = f"POST /courses HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {api.log_in()}\r\nContent-Type: text/csv\r\n"
    with connect(api) as connection:
        connection.sendall(f"{head}{framing}\r\n\r\n{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)[:12]


def test_a_body_that_is_shorter_than_it_says_is_not_stored(api, client):
    assert post_csv(api, "Content-Length: 999", "code,name,instructor\nA,b,c\n") == b"HTTP/1.1 400"
    client.get("/courses/A", status=404)


def test_chunks_that_are_none_are_refused(api):
    assert post_csv(api, "Transfer-Encoding: chunked", "two\r\n{}\r\n0\r\n\r\n") == b"HTTP/1.1 400"


# -- What the workers share --------------------------------------------------------------------------------------------


def rounds(api):
    """Yield again and again, until each worker has answered a request since the last time."""
    for _ in range(100):
        since = len(api.output)
        yield
        if len(api.who_answered(since)) == WORKERS:
            return
    raise AssertionError("one worker answered all")


def ask_all(api, ask):
    """Return the answers to many clients at once, until each worker has answered some of them."""
    answers, numbers = [], itertools.count()
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        for _ in rounds(api):
            answers += clients.map(ask, itertools.islice(numbers, 20))
    return answers


def log_in(api, login):
    return api.request("/login", "POST", login)[0]


def test_a_token_of_one_worker_is_good_on_all(api):
    token = api.log_in()
    assert set(ask_all(api, lambda _: api.request(f"/courses/CSE115?token={token}")[0])) == {200}


def test_what_one_worker_writes_all_can_read(api):
    """Each has connections of its own to the database, also where the app was loaded before they were forked."""
    bearer = f"Bearer {api.log_in()}"

    def write_and_read(number):
        course = NEW | {"code": f"C{number}"}
        written = api.request("/courses", "POST", course, Authorization=bearer)[0]
        return written, api.request(f"/courses/C{number}", Authorization=bearer)[0]

    assert set(ask_all(api, write_and_read)) == {(201, 200)}


def test_wrong_passwords_are_counted_over_all_workers(api, counts):
    for _ in rounds(api):
        counts.flushdb()
        assert [log_in(api, WRONG) for _ in range(6)] == [400] * 5 + [429]
        assert log_in(api, RIGHT) == 429


def test_of_guesses_at_once_each_other_worker_lets_one_more_through_at_most(api):
    """A worker hashes one password at a time, and what it has begun is not stopped when another one counts the last."""
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        statuses = list(clients.map(lambda _: log_in(api, WRONG), range(24)))
    assert set(statuses) == {400, 429}
    assert 5 <= statuses.count(400) < 5 + WORKERS


def test_the_access_log_has_no_token(api):
    token = api.log_in()
    api.request(f"/courses/LOGGED?token={token}")
    api.wait_for("GET /courses/LOGGED 404")
    assert token not in "".join(api.output)


# -- Start and end -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=COMMANDS)
def fresh(request, counts, tmp_path, run):
    """The app under a server, on a database that was not there before its workers started."""
    with serving(request.param, tmp_path) as workers:
        run("seed.py")
        yield workers


def test_workers_that_start_at_once_on_a_new_database_agree_on_the_key(fresh):
    token = fresh.log_in()
    assert set(ask_all(fresh, lambda _: fresh.request(f"/courses?token={token}")[0])) == {200}


def test_sigterm_finishes_the_request_under_way(fresh):
    body = json.dumps(NEW).encode()
    head = (
        f"POST /courses HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {fresh.log_in()}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with connect(fresh) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"  # so a worker has begun
        fresh.process.send_signal(signal.SIGTERM)
        fresh.wait_for(fresh.stops)
        connection.sendall(body)
        assert b" 201 Created\r\n" in read_all(connection)
    assert fresh.wait() == 0
