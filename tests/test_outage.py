"""A database server that goes away and comes back: a real PostgreSQL of these tests' own."""

import concurrent.futures
import contextlib
import json
import signal
import subprocess
import tempfile
import urllib.parse

import peewee
import psycopg2
import pymysql
import pytest
from playhouse import db_url
from servers import MARIADB_URL, POSTGRES_URL, Postgres, ask_server, new_database

pytestmark = pytest.mark.sqlite  # once, whichever database the other tests use
COURSE = {"code": "AAS 100", "name": "Intro Asian American Studies", "instructor": "Geng, Zhe"}


@pytest.fixture(scope="module")
def cluster():
    if not Postgres.programs:
        pytest.skip("needs PostgreSQL's programs")
    with tempfile.TemporaryDirectory(prefix="course-api-postgres-") as folder:
        server = Postgres(folder)
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def postgres(cluster):
    """The server, running before and after each test."""
    yield cluster
    with contextlib.suppress(FileNotFoundError):  # it has been stopped
        cluster.send(signal.SIGCONT)
    with contextlib.suppress(subprocess.CalledProcessError):  # it runs
        cluster.start()


@pytest.fixture
def api(postgres, run, start):
    assert run("seed.py", DATABASE_URL=postgres.url).returncode == 0
    return start(DATABASE_URL=postgres.url, TOKEN_SECONDS="1000", THREADS="8")


def ask_at_once(api, token, path="/courses/CSE115"):
    """Return the statuses of 24 requests by 8 clients."""
    with concurrent.futures.ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(api.request, path, Authorization=f"Bearer {token}") for _ in range(24)]
        return [answer.result()[0] for answer in asked]


def come_back(api, token):
    """Ask until the answer is another one than 503; return it."""
    while (answer := api.request("/courses/CSE115", Authorization=f"Bearer {token}"))[0] == 503:
        pass
    return answer


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_is_a_503_and_one_that_starts_again_is_used(api, postgres, mode):
    token = api.log_in()
    assert ask_at_once(api, token) == [200] * 24
    postgres.stop(mode)
    assert ask_at_once(api, token) == [503] * 24
    assert api.request("/health")[0] == api.request("/login", "POST", {"username": "a", "password": "b"})[0] == 503
    postgres.start()
    assert come_back(api, token)[0] == 200
    assert ask_at_once(api, token) == [200] * 24


def test_a_server_that_hangs_is_a_503_and_one_that_goes_on_is_used(api, postgres):
    token = api.log_in()
    assert ask_at_once(api, token) == [200] * 24
    postgres.send(signal.SIGSTOP)
    assert ask_at_once(api, token) == [503] * 24
    postgres.send(signal.SIGCONT)
    assert come_back(api, token)[0] == 200
    assert ask_at_once(api, token) == [200] * 24


def test_nobody_notices_that_a_server_was_started_anew_between_two_requests(api, postgres):
    token = api.log_in()
    assert ask_at_once(api, token) == [200] * 24
    postgres.start("restart")
    assert ask_at_once(api, token) == [200] * 24


def test_an_upload_that_its_server_leaves_stores_nothing_and_can_be_sent_again(api, postgres):
    token = api.log_in()
    courses = [COURSE | {"code": f"C {number}"} for number in range(40_000)]
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        answer = client.submit(api.request, f"/courses?token={token}", "POST", courses)
        while not postgres.is_inserting():
            assert not answer.done()
        postgres.stop("immediate")
        assert answer.result()[0] == 503
    postgres.start()
    assert come_back(api, token)[0] == 200
    assert api.request(f"/courses?token={token}", "POST", courses) == (201, '{"created":40000}')


# -- Connections and statements, on the servers that the other tests use -----------------------------------------------

SERVERS = [POSTGRES_URL, MARIADB_URL]


@pytest.fixture(params=SERVERS, ids=lambda url: url.partition(":")[0])
def url(request):
    """The address of a new database on each of the servers, in turn."""
    try:
        ask_server(request.param, "SELECT 1")
    except (psycopg2.OperationalError, pymysql.OperationalError):
        pytest.skip(f"needs {request.param}")
    with new_database(request.param) as url:
        yield url


@pytest.fixture
def other(url):
    """Another client of that database."""
    database = db_url.connect(url)
    yield database
    database.close_all()


@pytest.fixture
def served(url, run, start):
    """The API on that database, with the dummy data, and a token."""
    assert run("seed.py", DATABASE_URL=url).returncode == 0
    api = start(DATABASE_URL=url, TOKEN_SECONDS="1000")
    return api, api.log_in()


def test_connections_that_the_server_has_closed_are_not_used(served, other):
    api, token = served
    assert ask_at_once(api, token) == [200] * 24
    if isinstance(other, peewee.PostgresqlDatabase):
        clients = "pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        other.execute_sql(f"SELECT pg_terminate_backend(pid, 9000) FROM {clients}")
    else:
        clients = "information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
        for (number,) in other.execute_sql(f"SELECT id FROM {clients}").fetchall():
            other.execute_sql(f"KILL {number}")
    assert ask_at_once(api, token) == [200] * 24


def test_a_statement_that_takes_too_long_is_a_503_and_is_not_carried_out(served, other):
    api, token = served
    with other.atomic() as transaction:
        other.execute_sql("UPDATE courses SET name = 'Locked' WHERE code = 'CSE115'")
        assert api.request(f"/courses/CSE115?token={token}", "PATCH", {"name": "Changed"})[0] == 503
        transaction.rollback()
    assert json.loads(api.request(f"/courses/CSE115?token={token}")[1])["name"].startswith("Introduction")
    assert api.request(f"/courses/CSE115?token={token}", "PATCH", {"name": "Changed"})[0] == 204


def test_a_list_that_mariadb_cannot_send_is_a_503_and_not_an_empty_list(served, other):
    """More than 16 MiB, its max_allowed_packet; PostgreSQL sends it."""
    api, token = served
    if isinstance(other, peewee.PostgresqlDatabase):
        numbers, status = "generate_series(1, 18000) AS numbers(seq)", 200
    else:
        numbers, status = "seq_1_to_18000", 503
    fields = "CONCAT('C ', seq), REPEAT('\U0001f41a', 120), REPEAT('\U0001f41a', 120)"
    other.execute_sql(f"INSERT INTO courses (code, name, instructor) SELECT {fields} FROM {numbers}")
    assert api.request(f"/courses?token={token}")[0] == status
    assert api.request(f"/courses?limit=1000&token={token}")[0] == 200


@pytest.mark.parametrize("url", SERVERS[:1], indirect=True)
def test_a_cockroachdb_url_is_taken(run, start, url):
    """By a PostgreSQL here, which speaks the same protocol."""
    parts = urllib.parse.urlsplit(url)
    url = parts._replace(scheme="cockroachdb", netloc=parts.netloc if parts.port else f"{parts.netloc}:5432").geturl()
    assert run("seed.py", DATABASE_URL=url).stdout.startswith("Added: course CSE115")
    api = start(DATABASE_URL=url)
    token = api.log_in()
    assert api.request(f"/courses?token={token}", "POST", COURSE)[0] == 201
    assert api.request(f"/courses?token={token}", "POST", COURSE)[0] == 409
    assert "AAS 100" in api.request(f"/courses?q=asian&limit=1&token={token}")[1]
