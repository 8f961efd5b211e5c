"""The app under granian and gunicorn: what another server can change, and what several processes must share."""

import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import sys

import pytest
from catalogue import LOGIN, NEW, without_id
from processes import Server, run_program
from servers import ask, ask_at_once, ask_in_turn, connect, find_ports, is_listening, read_all, server_url, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]
WORKERS = 2
COMMANDS = {
    "granian": f"granian --interface wsgi --http 1 --workers {WORKERS} --workers-kill-timeout 10 --blocking-threads 4",
    "gunicorn": f"gunicorn --no-control-socket --workers {WORKERS} --graceful-timeout 10 --preload --threads 4",
}
HEAD = "POST /courses HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"


class Workers(Server):
    """The app under one of the COMMANDS, on the SQLite database in a folder."""

    def __init__(self, name, folder, **settings):
        (port,) = find_ports(1)
        self.url, self.stops = f"http://127.0.0.1:{port}", "Shutting down" if name == "granian" else "signal: term"
        options = ["--port", str(port)] if name == "granian" else ["--bind", f"127.0.0.1:{port}"]
        command = [sys.executable, "-m", *COMMANDS[name].split(), *options, "course_api:app"]
        settings = {"DATABASE_URL": f"sqlite:///{folder}/courses.db", **settings}
        self.launch(command, folder, settings, start_new_session=True)

    def close(self):
        """Kill what is left, with the workers, which a test that fails may leave behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        super().close()


@contextlib.contextmanager
def serving(name, folder, **settings):
    """Serve the dummy data for the block."""
    run_program(folder, "seed.py", DATABASE_URL=f"sqlite:///{folder}/courses.db").check_returncode()
    with contextlib.closing(Workers(name, folder, **settings)) as workers:
        wait_until(lambda: workers.process.poll() is not None or is_listening(workers.url))
        assert workers.request("/health")[0] == 200, workers.output
        yield workers


@pytest.fixture(scope="module", params=COMMANDS)
def api(request, tmp_path_factory):
    with serving(request.param, tmp_path_factory.mktemp("workers")) as api:
        yield api


@pytest.fixture(params=COMMANDS)
def fresh(request, tmp_path):
    with serving(request.param, tmp_path) as api:
        yield api


@pytest.fixture
def bearer(api):
    return api.bearer()


# -- Requests and responses --------------------------------------------------------------------------------------------


def test_a_body_may_come_in_chunks(api, bearer):
    chunks = iter([b"code,name,", b"instructor\nCH,b,c\n"])
    assert ask(api.url, "POST", "/courses", chunks, bearer | {"Content-Type": "text/csv"})[0] == 201
    assert api.request("/courses/CH", **bearer)[0] == 200


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 999", "code,name,instructor\nSHORT,b,c\n"),
        ("Transfer-Encoding: chunked", "two\r\ncode,name,instructor\nSHORT,b,c\n\r\n0\r\n\r\n"),
    ],
    ids=["length", "chunks"],
)
def test_a_body_that_is_cut_short_or_has_bad_chunks_is_refused_and_not_stored(api, bearer, framing, body):
    head = f"{HEAD}Authorization: {bearer['Authorization']}\r\nContent-Type: text/csv\r\n{framing}\r\n\r\n"
    with connect(api.url) as connection:
        connection.sendall(f"{head}{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection)[:12] == b"HTTP/1.1 400"
    assert api.request("/courses/SHORT", **bearer)[0] == 404


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_a_413(api, bearer, chunked):
    body, length = (iter([b" " * 2**20] * 17), {}) if chunked else (None, {"Content-Length": str(17 * 2**20)})
    status, _, text = ask(api.url, "POST", "/courses", body, bearer | {"Content-Type": "application/json"} | length)
    assert status == 413 and "larger than 16 MiB" in json.loads(text)["error"]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/login", 413), ("POST", "/courses", 401)])
def test_a_large_body_without_a_token_is_refused_before_it_is_read(api, method, path, status, chunked):
    body, length = (iter([b" " * 2**16] * 3), {}) if chunked else (None, {"Content-Length": str(3 * 2**16)})
    assert ask(api.url, method, path, body, {"Content-Type": "application/json"} | length)[0] == status


def test_head_has_the_headers_of_get_and_no_body(api, bearer):
    (status, got, _), (head_status, headers, body) = (
        ask(api.url, method, "/courses?limit=1", None, bearer) for method in ("GET", "HEAD")
    )
    assert status == head_status == 200 and body == ""
    kept = ("Content-Type", "Content-Length", "ETag", "Link", "X-Total-Count", "Cache-Control")
    assert [headers[name] for name in kept] == [got[name] for name in kept]


def test_a_connection_stays_open_after_responses_without_a_body(api, bearer):
    path, change = "/courses/CSE115", bearer | {"Content-Type": "application/json"}
    etag = ask(api.url, "GET", path, None, bearer)[1]["ETag"]
    requests = [
        ("GET", path, None, bearer | {"If-None-Match": etag}),
        ("PATCH", path, '{"name": "Basics"}', change),
        ("HEAD", path, None, bearer),
    ]
    assert [status for status, _ in ask_in_turn(api.url, requests)] == [304, 204, 200]


def test_paths_and_queries_may_hold_any_character(api, bearer):
    odd = NEW | {"code": "É & 1%", "name": "Ünï 🎓"}
    status, headers, _ = ask(api.url, "POST", "/courses", odd, bearer)
    assert (status, headers["Location"]) == (201, "/courses/%C3%89%20&%201%25")
    assert without_id(json.loads(api.request(headers["Location"], **bearer)[1])) == odd
    assert api.request("/courses?q=%C3%BCN%C3%8F+%F0%9F%8E%93", **bearer)[1].count('"code"') == 1
    assert api.request("/courses/%FF", **bearer)[0] == 400


# -- What the workers share --------------------------------------------------------------------------------------------


def test_a_token_of_one_worker_is_good_on_all_and_what_one_writes_all_can_read(api):
    """Each has connections of its own to the database, even if the app was loaded before the workers were forked."""
    api.check_many_clients()


@pytest.mark.parametrize("name", COMMANDS)
def test_failed_logins_are_counted_over_all_workers(name, tmp_path):
    """Each worker checks one password at a time, so each other one may let one more through."""
    with serving(name, tmp_path, LIMIT_STORAGE=server_url("REDIS_URL"), TRUSTED_PROXY="127.0.0.1") as api:
        client = {"X-Forwarded-For": f"10.{'.'.join(str(random.randrange(256)) for _ in range(3))}"}
        wrong = LOGIN | {"password": "wrong"}
        statuses = ask_at_once(lambda _: ask(api.url, "POST", "/login", wrong, client)[0], 60)
        assert set(statuses) == {400, 429}
        assert 5 <= statuses.count(400) < 5 + WORKERS
        assert ask(api.url, "POST", "/login", LOGIN, client)[0] == 429


# -- Start, stop and upgrade -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_setting_stops_the_start_with_its_line(name, tmp_path):
    with contextlib.closing(Workers(name, tmp_path, THREADS="0")) as api:
        assert api.wait() not in (0, None)
        assert any("THREADS must be a whole number from 1 to 1000" in line for line in api.output)


def test_sigterm_finishes_the_request_under_way(fresh):
    body = json.dumps(NEW).encode()
    head = f"{HEAD}Authorization: Bearer {fresh.log_in()}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    with connect(fresh.url) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"  # so a worker has begun
        fresh.process.terminate()
        fresh.wait_for(fresh.stops)
        connection.sendall(body)
        assert b" 201 Created\r\n" in read_all(connection)
    assert fresh.wait() == 0


def test_after_an_upgrade_seed_py_brings_the_schema_up_to_date_while_the_workers_run(fresh, tmp_path, run):
    bearer = fresh.bearer()
    with contextlib.closing(sqlite3.connect(tmp_path / "courses.db")) as database:  # as the release before left it
        database.executescript(
            "DROP TABLE api_keys; ALTER TABLE users DROP COLUMN stamp; "
            "DELETE FROM schema_migration WHERE name = '0004_accounts';"
        )
    assert fresh.request("/courses/CSE115", **bearer)[0] == 200
    assert ask(fresh.url, "POST", "/courses", NEW, bearer)[0] == 500
    assert run("seed.py", "users").returncode == 0
    assert fresh.request("/courses", "POST", NEW, **fresh.bearer())[0] == 201
