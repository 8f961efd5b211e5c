"""A database server that stops, crashes, is out of reach or slow: 503, nothing lost, and service again by itself."""

import concurrent.futures
import contextlib
import json
import socket
import subprocess
import tempfile
import time

import pytest
from servers import Postgres, ask, execute, locked, new_database, server_url, wait_until
from test_server import refused

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]
COURSE = {"code": "AAS 100", "name": "Intro Asian American Studies", "instructor": "Geng, Zhe"}


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="course-api-postgres-") as folder:
        server = Postgres(folder)
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def postgres(cluster):
    """A PostgreSQL of the tests' own, which runs before and after each test."""
    yield cluster
    with contextlib.suppress(subprocess.CalledProcessError):  # it runs
        cluster.start()


@pytest.fixture
def api(postgres, run, start):
    assert run("seed.py", DATABASE_URL=postgres.url).returncode == 0
    return start(DATABASE_URL=postgres.url, TOKEN_SECONDS="1000", THREADS="8")


def ask_at_once(api, token):
    """Return the statuses of 24 requests by 8 clients."""
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(api.request, f"/courses/CSE115?token={token}") for _ in range(24)]
        return [response.result()[0] for response in asked]


def wait_until_back(api, token):
    wait_until(lambda: api.request(f"/courses/CSE115?token={token}")[0] == 200)
    assert ask_at_once(api, token) == [200] * 24


def test_nobody_notices_a_restart_between_two_requests(api, postgres):
    token = api.log_in()
    assert ask_at_once(api, token) == [200] * 24
    postgres.start("restart")
    assert ask_at_once(api, token) == [200] * 24


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_is_a_503_and_is_used_again_when_it_is_back(api, postgres, mode):
    token = api.log_in()
    assert ask_at_once(api, token) == [200] * 24
    assert api.request(f"/courses?token={token}", "POST", COURSE | {"code": mode})[0] == 201
    postgres.stop(mode)
    assert ask_at_once(api, token) == [503] * 24
    status, headers, body = ask(api.url, "POST", "/login", {"username": "a", "password": "b"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(body) == {"error": "the database is not available; try again soon"}
    assert api.request("/health")[0] == 503
    postgres.start()
    wait_until_back(api, token)
    assert api.request(f"/courses/{mode}?token={token}")[0] == 200


def test_a_server_that_cannot_be_reached_is_a_503_and_is_used_again_when_it_is_back(api, postgres):
    """A listening socket whose backlog is full takes its place; the system drops what comes then."""
    token = api.log_in()
    postgres.stop()
    with socket.create_server(("127.0.0.1", postgres.port), backlog=0) as silent, contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        begin = time.monotonic()
        assert api.request(f"/courses/CSE115?token={token}")[0] == 503
        assert time.monotonic() - begin < 5  # not until the system gives up, after minutes
    postgres.start()
    wait_until_back(api, token)


def test_an_address_that_cannot_be_reached_stops_the_start_with_one_line(run):
    line = refused(run("course_api.py", DATABASE_URL="postgresql://user:secret@127.0.0.1:1/name", PORT="0"))
    assert "postgresql://127.0.0.1:1/name" in line and "secret" not in line


def test_an_upload_during_which_the_server_crashes_stores_nothing_and_can_be_sent_again(api, postgres):
    token = api.log_in()
    courses = [COURSE | {"code": f"C {number}"} for number in range(40_000)]
    others = "pg_stat_activity WHERE pid <> pg_backend_pid()"
    inserting = f"SELECT 1 FROM {others} AND state = 'active' AND query LIKE '%INSERT INTO courses%'"
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        response = client.submit(api.request, f"/courses?token={token}", "POST", courses)
        wait_until(lambda: execute(postgres.url, inserting))
        postgres.stop("immediate")
        assert response.result()[0] == 503
    postgres.start()
    wait_until_back(api, token)
    assert api.request(f"/courses?token={token}", "POST", courses) == (201, '{"created":40000}')


# -- Connections and statements, on both kinds of servers --------------------------------------------------------------


@pytest.fixture(params=["POSTGRES_URL", "MARIADB_URL"])
def url(request):
    """The URL of a new database on each of the servers, in turn."""
    with new_database(server_url(request.param)) as url:
        yield url


@pytest.fixture
def served(url, run, start):
    """The API on that database, with the dummy data, and a token."""
    assert run("seed.py", DATABASE_URL=url).returncode == 0
    api = start(DATABASE_URL=url, TOKEN_SECONDS="1000")
    return api, api.log_in()


def test_processes_that_start_at_once_on_a_new_database_agree_on_the_key(url, run, start):
    with concurrent.futures.ThreadPoolExecutor() as threads:
        apis = list(threads.map(lambda _: start(DATABASE_URL=url), range(4)))
    assert run("seed.py", DATABASE_URL=url).returncode == 0
    token = apis[0].log_in()
    assert [api.request(f"/courses?token={token}")[0] for api in apis] == [200] * 4


def test_connections_that_the_server_has_closed_are_not_used(served, url):
    api, token = served
    assert ask_at_once(api, token) == [200] * 24
    if url.startswith("postgres"):
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        execute(url, f"SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE {others}")
    else:
        others = "db = DATABASE() AND id <> CONNECTION_ID()"
        for (number,) in execute(url, f"SELECT id FROM information_schema.processlist WHERE {others}"):
            execute(url, f"KILL {number}")
    assert ask_at_once(api, token) == [200] * 24


def test_a_statement_that_takes_too_long_is_a_503_and_is_not_carried_out(served, url):
    api, token = served
    path = f"/courses/CSE115?token={token}"
    with locked(url):
        assert api.request(path, "PATCH", {"name": "Changed"})[0] == 503
    assert "Introduction to programming" in api.request(path)[1]
    assert api.request(path, "PATCH", {"name": "Changed"})[0] == 204


def test_a_list_that_mariadb_cannot_send_is_a_503_and_not_an_empty_list(served, url):
    """It is longer than 16 MiB, MariaDB's max_allowed_packet; PostgreSQL sends it."""
    api, token = served
    numbers, status = "seq_1_to_18000", 503
    if url.startswith("postgres"):
        numbers, status = "generate_series(1, 18000) AS numbers(seq)", 200
    fields = "CONCAT('C ', seq), REPEAT('\U0001f41a', 120), REPEAT('\U0001f41a', 120)"
    execute(url, f"INSERT INTO courses (code, name, instructor) SELECT {fields} FROM {numbers}")
    assert api.request(f"/courses?token={token}")[0] == status
    assert api.request(f"/courses?limit=1000&token={token}")[0] == 200
