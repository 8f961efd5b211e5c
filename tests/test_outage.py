"""A database server that stops, crashes, is out of reach or slow: 503, nothing lost, and service again by itself."""

import concurrent.futures
import contextlib
import json
import socket
import subprocess

import outages
import pytest
from catalogue import COURSE, insert_sql
from processes import Server, refused, run_program
from servers import ask, ask_at_once, execute, new_database, own_postgres, server_url, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]
ONE = "/courses/CSE115"


@pytest.fixture(scope="module")
def cluster():
    with own_postgres() as server:
        yield server


@pytest.fixture
def postgres(cluster):
    """A PostgreSQL of the tests' own, which runs before and after each test."""
    yield cluster
    with contextlib.suppress(subprocess.CalledProcessError):  # it runs
        cluster.start()


def statuses(api, bearer):
    """Return the statuses of 24 requests by 8 clients, each only once."""
    return set(ask_at_once(lambda _: api.request(ONE, **bearer)[0], 24))


def wait_until_back(api, bearer):
    wait_until(lambda: api.request(ONE, **bearer)[0] == 200)
    assert statuses(api, bearer) == {200}


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_server_that_stops_is_a_503_and_is_used_again_when_it_is_back(serve, postgres, mode):
    api, bearer = serve(DATABASE_URL=postgres.url)
    assert statuses(api, bearer) == {200}
    assert api.request("/courses", "POST", COURSE | {"code": mode}, **bearer)[0] == 201
    postgres.stop(mode)
    assert statuses(api, bearer) == {503}
    status, headers, body = ask(api.url, "POST", "/login", {"username": "a", "password": "b"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(body) == {"error": "the database is not available; try again soon"}
    assert api.request("/health")[0] == 503
    postgres.start()
    wait_until_back(api, bearer)
    assert api.request(f"/courses/{mode}", **bearer)[0] == 200


def test_a_server_that_cannot_be_reached_is_a_503_and_is_used_again_when_it_is_back(serve, postgres):
    """A listening socket whose backlog is full takes its place; the system drops what comes then.

    A request that waited until the system gives up, which takes minutes, would run into the client's own limit.
    """
    api, bearer = serve(DATABASE_URL=postgres.url)
    postgres.stop()
    with socket.create_server(("127.0.0.1", postgres.port), backlog=0) as silent, contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        assert api.request(ONE, **bearer)[0] == 503
    postgres.start()
    wait_until_back(api, bearer)


def test_an_address_that_cannot_be_reached_stops_the_start_with_one_line(run):
    line = refused(run("course_api.py", DATABASE_URL="postgresql://user:secret@127.0.0.1:1/name", PORT="0"))
    assert "postgresql://127.0.0.1:1/name" in line and "secret" not in line


def test_an_upload_during_which_the_server_crashes_stores_nothing_and_can_be_sent_again(serve, postgres):
    api, bearer = serve(DATABASE_URL=postgres.url)
    courses = [COURSE | {"code": f"C {number}"} for number in range(40_000)]
    inserting = (
        "SELECT 1 FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND state = 'active' AND query LIKE '%INSERT INTO courses%'"
    )
    with concurrent.futures.ThreadPoolExecutor(1) as client:
        response = client.submit(api.request, "/courses", "POST", courses, **bearer)
        wait_until(lambda: execute(postgres.url, inserting))
        postgres.stop("immediate")
        assert response.result()[0] == 503
    postgres.start()
    wait_until_back(api, bearer)
    assert api.request("/courses", "POST", courses, **bearer) == (201, '{"created":40000}')


# -- Every kind of outage ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def besieged(request, tmp_path_factory):
    """The API on a database of the tests' own, of a kind; a token's header; and the database's Site."""
    with outages.SITES[request.param]() as site:
        folder, settings = tmp_path_factory.mktemp("api"), {"DATABASE_URL": site.url, "TOKEN_SECONDS": "10000"}
        run_program(folder, "seed.py", **settings).check_returncode()
        with contextlib.closing(Server(folder, **settings)) as api:
            yield api, api.bearer(), site


@pytest.mark.parametrize(
    ("besieged", "cause"),
    [
        pytest.param(database, cause, id=f"{database}, {cause.name}")
        for database in outages.SITES
        for cause in outages.CAUSES
        if cause.database == database
    ],
    indirect=["besieged"],
    scope="module",
)
def test_each_outage_is_a_503_and_one_line_of_the_log_and_then_the_api_serves_again(besieged, cause):
    (_, headers, body), lines, _ = outages.suffer(*besieged, cause)
    assert headers["Retry-After"] == "1"
    assert json.loads(body) == {"error": "the database is not available; try again soon"}
    (line,) = lines
    assert " ERROR the database is not available: " in line and cause.words in line
    assert outages.PASSWORD not in line


# -- Connections and statements, on both kinds of servers --------------------------------------------------------------


@pytest.fixture(params=["POSTGRES_URL", "MARIADB_URL"])
def url(request):
    """The URL of a new database on each of the servers, in turn."""
    with new_database(server_url(request.param)) as url:
        yield url


def test_connections_that_the_server_has_closed_are_not_used(serve, url):
    api, bearer = serve(DATABASE_URL=url)
    assert statuses(api, bearer) == {200}
    if url.startswith("postgres"):
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        execute(url, f"SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE {others}")
    else:
        others = "db = DATABASE() AND id <> CONNECTION_ID()"
        for (number,) in execute(url, f"SELECT id FROM information_schema.processlist WHERE {others}"):
            execute(url, f"KILL {number}")
    assert statuses(api, bearer) == {200}


def test_a_statement_that_takes_too_long_is_a_503_and_is_not_carried_out(serve, url):
    api, _ = serve(DATABASE_URL=url)
    api.check_time_limit(url)


def test_a_list_that_mariadb_cannot_send_is_a_503_and_not_an_empty_list(serve, url):
    """It is longer than 16 MiB, MariaDB's max_allowed_packet; PostgreSQL sends it."""
    api, bearer = serve(DATABASE_URL=url)
    numbers, status = "seq_1_to_18000", 503
    if url.startswith("postgres"):
        numbers, status = "generate_series(1, 18000) AS numbers(seq)", 200
    long = "REPEAT('\U0001f41a', 120)"
    insert, values = insert_sql(code="CONCAT('C ', seq)", name=long, instructor=long)
    execute(url, f"{insert} SELECT {values} FROM {numbers}")
    assert api.request("/courses", **bearer)[0] == status
    assert api.request("/courses?limit=1000", **bearer)[0] == 200
