"""`python course_api.py` as a real process: start, settings, log, limits, signals."""

import concurrent.futures
import contextlib
import http.client
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, Server, database_url

NEW = {"code": "CSE225", "name": "Data structures", "instructor": "Ada Lovelace"}


def connect(api):
    """Return a plain socket to the server."""
    host, port = api.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def read_all(connection):
    """Return what the server sends until it closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


# -- Start -------------------------------------------------------------------------------------------------------------


def test_it_says_where_it_listens_and_that_a_user_is_missing(start):
    api = start()
    assert api.request("/health") == (200, '{"status": "ok"}')
    assert api.wait_for("user") == "There is no user yet: run python seed.py"


def test_it_says_how_to_log_in_and_that_is_how(run, start):
    run("seed.py")
    command = start().wait_for("Log in: ").removeprefix("Log in: ")
    for word in ("username", "password"):
        command = command.replace(f'"{word}": "..."', f'"{word}": "faisal"')
    done = subprocess.run(["sh", "-c", command + " --silent"], capture_output=True, text=True, timeout=20)
    assert done.stdout.count(".") == 2


def test_help_lists_every_setting_and_changes_nothing(run, tmp_path):
    done = run("course_api.py", "--help")
    assert done.returncode == 0
    for name in ("HOST", "PORT", "DATABASE_URL", "SECRET_KEY", "TOKEN_SECONDS", "THREADS", "LOG_LEVEL"):
        assert f"    {name} " in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("PORT", "-1"),
        ("THREADS", "0"),
        ("TOKEN_SECONDS", "0"),
        ("TOKEN_SECONDS", "1.5"),
        ("LOG_LEVEL", "LOUD"),
        ("LOGIN_LIMIT", "often"),
        ("LOGIN_LIMIT", "5/5fortnights"),
        ("LIMIT_STORAGE", "disk://"),
        ("LIMIT_STORAGE", "nothing"),
        ("TRUSTED_PROXY", "proxy.example"),
        ("CORS_ORIGINS", "example.com"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("SECRET_KEY", "too short, by one byte to be ok"),
        ("DATABASE_URL", "oracle://scott:tiger@host/name"),
        ("DATABASE_URL", "oracle://scott:a?tiger@host/name"),
        ("DATABASE_URL", "courses.db"),
        ("DATABASE_URL", "sqlite://courses.db"),
        ("DATABASE_URL", "sqlite:////nowhere/courses.db"),
        ("DATABASE_URL", "sqlite:////"),
        ("HOST", "no such host"),
        ("HOST", "192.0.2.1"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_line_that_names_it(run, name, value):
    done = run("course_api.py", **{"PORT": "0", name: value})
    assert done.returncode == 1
    assert name in done.stderr
    assert done.stderr.count("\n") == 1
    assert "scott" not in done.stderr
    assert "Serving" not in done.stdout


def test_a_port_that_is_taken_stops_the_start_with_one_line(run, start):
    port = start().url.rsplit(":", 1)[1]
    done = run("course_api.py", PORT=port)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_setting_is_no_setting(start):
    assert start(SECRET_KEY="", LOG_LEVEL="").request("/health")[0] == 200


def test_the_key_in_the_database_outlives_a_restart(run, start):
    run("seed.py")
    first = start()
    token = first.log_in()
    first.close()
    assert start().request(f"/courses?token={token}")[0] == 200


def test_another_secret_key_refuses_the_tokens_of_the_first(run, start):
    run("seed.py")
    token = start(SECRET_KEY="a" * 32).log_in()
    assert start(SECRET_KEY="a" * 32).request(f"/courses?token={token}")[0] == 200
    assert start(SECRET_KEY="b" * 32).request(f"/courses?token={token}")[0] == 401


def test_token_seconds_is_how_long_a_token_is_good(run, start):
    run("seed.py")
    api = start(TOKEN_SECONDS="1")
    token = api.log_in()
    assert api.request(f"/courses?token={token}")[0] == 200
    deadline = time.monotonic() + 20
    while api.request(f"/courses?token={token}")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_many_processes_can_start_at_once_on_a_new_database_and_agree_on_the_key(tmp_path):
    with contextlib.ExitStack() as servers, concurrent.futures.ThreadPoolExecutor() as threads:
        apis = list(threads.map(lambda _: Server(tmp_path), range(6)))
        for api in apis:
            servers.callback(api.close)
        user = [sys.executable, ROOT / "seed.py", "user", "grace"]
        url = database_url(tmp_path)
        subprocess.run(user, input=b"hopper\n", env={"DATABASE_URL": url}, check=True, stdout=subprocess.DEVNULL)
        token = apis[0].log_in("grace", "hopper")
        assert [api.request(f"/courses?token={token}")[0] for api in apis] == [200] * 6


@pytest.mark.sqlite
def test_a_database_in_memory_has_the_dummy_data_and_is_shared_by_all_threads(start, tmp_path):
    api = start(DATABASE_URL="sqlite:///:memory:")
    bearer = "Bearer " + api.log_in()

    def add(number):
        return api.request("/courses", "POST", NEW | {"code": f"C{number}"}, Authorization=bearer)[0]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(add, range(200))) == {201}
    _, courses = api.request("/courses", Authorization=bearer)
    assert courses.count('"code"') == 202
    assert not list(tmp_path.iterdir())


@pytest.mark.sqlite
def test_the_app_is_plain_wsgi_for_any_server(tmp_path):
    """The standard library's server, in a process of its own, which only imports course_api:app."""
    program = (
        "from wsgiref.simple_server import make_server, WSGIRequestHandler as Handler\n"
        "from course_api import app\n"
        "server = make_server('127.0.0.1', 0, app)\n"
        "print('Serving app on http://127.0.0.1:%d;' % server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    (tmp_path / "serve.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}")
    with contextlib.closing(Server(tmp_path, program=tmp_path / "serve.py", DATABASE_URL="sqlite://")) as api:
        bearer = "Bearer " + api.log_in()
        assert api.request("/courses", "POST", NEW, Authorization=bearer)[0] == 201
        assert api.request("/courses/CSE225", Authorization=bearer)[0] == 200
        assert api.request("/courses", "POST", NEW | {"code": ""}, Authorization=bearer)[0] == 400


# -- The log -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_every_request_has_a_line_in_the_log_and_no_line_has_a_secret(run, start, level):
    run("seed.py")
    key = "0123456789abcdef0123456789abcdef"
    api = start(LOG_LEVEL=level, SECRET_KEY=key)
    token = api.log_in()
    _, courses = api.request(f"/courses?token={token}")
    api.request("/courses/AAS%20100", Authorization=f"Bearer {token}")
    api.request("/courses/%0Aforged%1B%5B2J?token=bad")
    with connect(api) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert read_all(connection).endswith(b'{"error":"Bad Request: Start line is invalid"}')
    lines = [api.wait_for(" bytes ").split(" INFO ")[1] for _ in range(5)]
    assert [line.partition(" bytes ")[0] for line in lines] == [
        "127.0.0.1 POST /login 200 " + str(len(token)),
        f"127.0.0.1 GET /courses 200 {len(courses)}",
        "127.0.0.1 GET /courses/AAS%20100 404 51",
        "127.0.0.1 GET /courses/%0Aforged%1B%5B2J 401 25",
        "127.0.0.1 - - 400 46",
    ]
    api.process.send_signal(signal.SIGTERM)
    api.wait()
    for secret in (token, key, "faisal", "argon2", "token="):
        assert secret not in "\n".join(api.output)


# -- Limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"GET /\x01 HTTP/1.1\r\nHost : a\r\n\r\n", b"400"),
        (b"POST /login HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
    ],
)
def test_what_the_server_itself_refuses_is_json_too(start, request_bytes, status):
    with connect(start()) as connection:
        connection.sendall(request_bytes)
        head, body = read_all(connection).split(b"\r\n\r\n")
    assert head.split()[1] == status
    assert b"Content-Type: application/json" in head
    assert body.startswith(b'{"error":"')


def test_a_client_that_sends_too_much_still_reads_why(start):
    with connect(start()) as connection:
        connection.sendall(b"POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 20000000\r\n\r\n")
        for _ in range(2000):
            connection.sendall(b"x" * 10_000)
        assert b"413 Request Entity Too Large" in read_all(connection)


def test_no_answer_tells_which_server_it_is(start):
    with connect(start()) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = read_all(connection)
    assert b"Server:" not in answer
    assert b"waitress" not in answer.lower()


def test_a_connection_stays_open_after_an_answer_without_a_body(run, start):
    run("seed.py")
    api = start()
    headers = {"Authorization": "Bearer " + api.log_in(), "Content-Type": "application/json"}
    host = api.url.removeprefix("http://")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        statuses = []
        for method in ("PATCH", "GET", "DELETE", "GET"):
            connection.request(method, "/courses/CSE115", '{"name": "Basics"}', headers)
            answer = connection.getresponse()
            answer.read()
            statuses.append((answer.status, answer.getheader("Connection"), connection.sock is not None))
    assert statuses == [(status, None, True) for status in (204, 200, 204, 404)]


@pytest.mark.parametrize(
    "head", [b"GET /health HTTP/1.0\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"]
)
@pytest.mark.sqlite
def test_a_connection_is_closed_where_the_request_asks_for_it(start, head):
    with connect(start()) as connection:
        connection.sendall(head + b"\r\n")
        assert b"Connection: close" in read_all(connection)


# -- Threads -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_writes(run, start, tmp_path):
    """A function that sends so many POSTs, each held up until the block ends by another program that writes."""
    run("seed.py")

    @contextlib.contextmanager
    def slow_writes(number, **settings):
        api = start(**settings)
        bearer = "Bearer " + api.log_in()

        def post(index):
            return api.request("/courses", "POST", NEW | {"code": f"SLOW {index}"}, Authorization=bearer)[0]

        with contextlib.closing(sqlite3.connect(tmp_path / "courses.db", isolation_level=None)) as other:
            with concurrent.futures.ThreadPoolExecutor(number) as threads:
                other.execute("BEGIN IMMEDIATE")
                writes = [threads.submit(post, index) for index in range(number)]
                time.sleep(0.3)
                yield api, bearer, writes
                assert not any(write.done() for write in writes)
                other.execute("COMMIT")
            assert [write.result() for write in writes] == [201] * number
            assert other.execute("SELECT count(*) FROM courses WHERE code LIKE 'SLOW %'").fetchone() == (number,)

    return slow_writes


@pytest.mark.sqlite
def test_slow_requests_do_not_hold_up_quick_ones(slow_writes):
    with slow_writes(3) as (api, bearer, _):
        for _ in range(50):
            assert api.request("/courses/CSE115", Authorization=bearer)[0] == 200


@pytest.mark.sqlite
@pytest.mark.parametrize("threads", ["1", "2"])
def test_more_slow_requests_than_threads_are_all_answered(slow_writes, threads):
    with slow_writes(6, THREADS=threads):
        pass


def test_many_clients_at_once_are_all_answered(run, start):
    """Quick and slow requests over and over, so that the lead passes from thread to thread many times."""
    run("seed.py")
    api = start(LOGIN_LIMIT="1000/minute")
    bearer = "Bearer " + api.log_in()

    def work(number):
        statuses = []
        for turn in range(20):
            if number % 4 == turn % 4 == 0:
                statuses.append(api.request("/login", "POST", {"username": "faisal", "password": "wrong"})[0] == 400)
            body = NEW | {"code": f"{number}-{turn}"}
            statuses.append(api.request("/courses", "POST", body, Authorization=bearer)[0] == 201)
            statuses.append(api.request(f"/courses/{number}-{turn}", Authorization=bearer)[0] == 200)
        return all(statuses)

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert all(threads.map(work, range(16)))
    assert api.request("/courses", Authorization=bearer)[1].count('"code"') == 2 + 16 * 20


# -- Signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.sqlite
def test_a_signal_finishes_the_requests_under_way_and_exits_0(run, start, tmp_path, number):
    run("seed.py")
    api = start()
    bearer = "Bearer " + api.log_in()
    with contextlib.closing(sqlite3.connect(tmp_path / "courses.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # another program writes, so that this request is a slow one
        answers = []
        slow = threading.Thread(
            target=lambda: answers.append(api.request("/courses", "POST", NEW, Authorization=bearer))
        )
        slow.start()
        time.sleep(0.3)
        api.process.send_signal(number)
        time.sleep(0.3)
        assert api.process.poll() is None
        assert answers == []
        other.execute("COMMIT")
        slow.join(20)
        assert other.execute("SELECT count(*) FROM courses WHERE code = 'CSE225'").fetchone() == (1,)
    assert answers == [(201, "")]
    assert api.wait() == 0
    assert api.output[-1] == "Stopped."


def test_a_request_that_is_half_sent_at_the_signal_is_answered(start):
    api = start()
    with connect(api) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHo")
        time.sleep(0.2)
        api.process.send_signal(signal.SIGTERM)
        time.sleep(0.8)
        connection.sendall(b"st: a\r\n\r\n")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\nConnection: close\r\n" in answer
    assert api.wait() == 0


def test_no_request_that_was_sent_before_the_signal_is_dropped(run, start):
    """Clients on keep-alive connections send one request after another, until an answer says "close"."""
    run("seed.py")
    api = start()
    headers = {"Authorization": "Bearer " + api.log_in()}
    host = api.url.removeprefix("http://")

    def ask_until_closed(_):
        with contextlib.closing(http.client.HTTPConnection(host, timeout=20)) as connection:
            for number in range(1_000_000):
                connection.request("GET", "/courses/CSE115", headers=headers)
                answer = connection.getresponse()
                assert answer.status == 200
                assert answer.read().endswith(b"}")
                if answer.getheader("Connection") == "close":
                    return number
        raise AssertionError("the server never stopped")

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        clients = [threads.submit(ask_until_closed, number) for number in range(8)]
        time.sleep(0.5)
        api.process.send_signal(signal.SIGTERM)
        assert min(client.result() for client in clients) > 0
    assert api.wait() == 0


def test_an_idle_connection_does_not_hold_up_the_exit(start):
    api = start()
    with connect(api) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536)
        api.process.send_signal(signal.SIGTERM)
        assert api.wait(seconds=5) == 0
