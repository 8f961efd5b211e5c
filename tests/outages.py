"""Outages by kind, each made to happen for real, and what the API must do: answer 503, and serve again by itself.

Each cause is a context manager: the outage lasts as long as its block. It gets a Site.
"""

import concurrent.futures
import contextlib
import shutil
import sqlite3
import tempfile
import time
from typing import NamedTuple

import pymysql
from catalogue import COURSE
from servers import UNPRIVILEGED, ask, execute, full, locked, own_mariadb, own_postgres, small_disk, wait_until

COURSES = [COURSE | {"code": f"{number:020}", "name": "n" * 120, "instructor": "i" * 120} for number in range(5000)]
CHANGE = ("PATCH", "/courses/CSE115", {"name": "Changed"})
UPLOAD = ("POST", "/courses?update=true", COURSES)
USER = "courses"
PASSWORD = "another-secret"


class Site(NamedTuple):
    """A database of the tests' own: its URL for the API, an administrator's URL, its server, and its disk's folder."""

    url: str
    admin: str
    server: object
    disk: str


def make_url(url):
    """Return the URL of the API's user, given the administrator's."""
    scheme, _, place = url.partition("://")
    return f"{scheme}://{USER}:{PASSWORD}@{place.partition('@')[2].partition('/')[0]}/courses"


# -- The databases -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def sqlite():
    with tempfile.TemporaryDirectory(prefix="course-api-disk-") as disk, small_disk(disk, 8):
        yield Site(f"sqlite:///{disk}/courses.db", "", None, disk)


@contextlib.contextmanager
def postgresql():
    with (
        own_postgres() as server,
        tempfile.TemporaryDirectory(prefix="course-api-disk-") as disk,
        small_disk(disk, 32),
    ):
        shutil.chown(disk, UNPRIVILEGED)
        (server.folder / "pg_hba.conf").write_text(f"host all {USER} all scram-sha-256\nhost all all all trust\n")
        execute(server.url, "SELECT pg_reload_conf()")
        execute(server.url, f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        execute(server.url, f"CREATE TABLESPACE small OWNER {USER} LOCATION '{disk}'")
        execute(server.url, f"CREATE DATABASE courses OWNER {USER} TABLESPACE small")
        yield Site(make_url(server.url), f"{server.url.rpartition('/')[0]}/courses", server, disk)
        server.stop("immediate")  # or it would still use the disk
        server.start()


@contextlib.contextmanager
def mariadb():
    with own_mariadb() as server, contextlib.ExitStack() as stack:
        execute(server.url, "CREATE DATABASE courses")
        stack.enter_context(small_disk(server.folder / "courses", 24))
        execute(server.url, f"CREATE USER {USER}@localhost IDENTIFIED BY '{PASSWORD}'")
        execute(server.url, f"GRANT ALL ON courses.* TO {USER}@localhost")
        yield Site(make_url(server.url), f"{server.url.rpartition('/')[0]}/courses", server, server.folder / "courses")


SITES = {"SQLite": sqlite, "PostgreSQL": postgresql, "MariaDB": mariadb}

# -- The causes --------------------------------------------------------------------------------------------------------


class Cause(NamedTuple):
    """An outage: the usual words for it in the log, and a request that meets it."""

    database: str
    name: str
    words: str
    request: tuple
    happen: object


CAUSES = []


def cause(database, name, words, request=CHANGE):
    """Register what makes an outage happen, a generator."""

    def register(function):
        CAUSES.append(Cause(database, name, words, request, contextlib.contextmanager(function)))
        return function

    return register


@contextlib.contextmanager
def statements(site, begin, end):
    """Run statements as the administrator, to begin and to end an outage, and close the API's connections each time."""
    for sql in begin:
        execute(site.admin, sql)
    close_connections(site)
    try:
        yield
    finally:
        for sql in end:
            execute(site.admin, sql)


def close_connections(site):
    if site.admin.startswith("postgres"):
        execute(site.admin, f"SELECT pg_terminate_backend(pid, 9000) FROM pg_stat_activity WHERE usename = '{USER}'")
    else:
        for (number,) in execute(site.admin, f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'"):
            execute(site.admin, f"KILL {number}")


def kill_the_waiting(site, waiting, kill):
    """Kill the API's statement that waits for a lock, once there is one."""
    with locked(site.admin), concurrent.futures.ThreadPoolExecutor(1) as pool:
        killed = pool.submit(
            lambda: execute(site.admin, kill.format(*wait_until(lambda: execute(site.admin, waiting))[0]))
        )
        yield
        killed.result()


@cause("SQLite", "locked", "another program has locked it")
def lock_the_file(site):
    with contextlib.closing(sqlite3.connect(f"{site.disk}/courses.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@cause("SQLite", "full disk", "the disk is full", UPLOAD)
@cause("PostgreSQL", "full disk", "the disk is full", UPLOAD)
@cause("MariaDB", "full disk", "the disk is full", UPLOAD)
def fill_the_disk(site):
    with full(site.disk):
        yield


@cause("PostgreSQL", "away", "Connection refused")
@cause("MariaDB", "away", "Connection refused")
def stop_the_server(site):
    site.server.stop()
    try:
        yield
    finally:
        site.server.start()


@cause("PostgreSQL", "locked", "a statement took too long, or waited for a lock")
@cause("MariaDB", "locked", "a statement took too long, or waited for a lock")
def lock_a_row(site):
    with locked(site.admin):
        yield


@cause("PostgreSQL", "read-only", "the database is read-only")
def make_postgresql_read_only(site):
    """Sessions that are open turn read-only too."""
    for value in ("on", "off"):
        execute(site.admin, f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        execute(site.admin, "SELECT pg_reload_conf()")
        wait_until(lambda value=value: execute(site.admin, "SHOW default_transaction_read_only") == [(value,)])
        if value == "on":
            yield


@cause("MariaDB", "read-only", "the database is read-only")
def make_mariadb_read_only(site):
    execute(site.admin, "SET GLOBAL read_only = 1")
    yield
    execute(site.admin, "SET GLOBAL read_only = 0")


@cause("PostgreSQL", "too many connections", "too many connections for role")
def limit_the_role(site):
    with statements(site, [f"ALTER ROLE {USER} CONNECTION LIMIT 0"], [f"ALTER ROLE {USER} CONNECTION LIMIT -1"]):
        yield


@cause("MariaDB", "too many connections", "there are too many connections")
def limit_the_user(site):
    """Another client of this user takes the only connection."""
    limit = f"ALTER USER {USER}@localhost WITH MAX_USER_CONNECTIONS"

    def connect():
        with contextlib.suppress(pymysql.OperationalError):  # until the connections that were closed are gone
            return pymysql.connect(host="127.0.0.1", port=site.server.port, user=USER, password=PASSWORD)

    with statements(site, [f"{limit} 1"], [f"{limit} 0"]), contextlib.closing(wait_until(connect)):
        yield


@cause("PostgreSQL", "right revoked", "a right is missing")
def revoke_from_the_role(site):
    """Sessions that are open lose the right too."""
    execute(site.admin, f"REVOKE UPDATE ON courses FROM {USER}")
    yield
    execute(site.admin, f"GRANT UPDATE ON courses TO {USER}")


@cause("MariaDB", "right revoked", "a right is missing")
def revoke_from_the_user(site):
    user = f"{USER}@localhost"
    with statements(site, [f"REVOKE ALL ON courses.* FROM {user}"], [f"GRANT ALL ON courses.* TO {user}"]):
        yield


@cause("PostgreSQL", "password changed", "password authentication failed")
@cause("MariaDB", "password changed", "the user or password is refused")
def change_the_password(site):
    change = f"ALTER ROLE {USER} PASSWORD"
    if site.admin.startswith("mysql"):
        change = f"ALTER USER {USER}@localhost IDENTIFIED BY"
    with statements(site, [f"{change} 'changed'"], [f"{change} '{PASSWORD}'"]):
        yield


@cause("PostgreSQL", "connection killed", "server closed the connection unexpectedly")
def kill_the_backend(site):
    waiting = f"SELECT pid FROM pg_stat_activity WHERE usename = '{USER}' AND wait_event_type = 'Lock'"
    yield from kill_the_waiting(site, waiting, "SELECT pg_terminate_backend({})")


@cause("MariaDB", "connection killed", "Lost connection")
def kill_the_thread(site):
    waiting = f"SELECT id FROM information_schema.processlist WHERE user = '{USER}' AND info LIKE '%UPDATE courses%'"
    yield from kill_the_waiting(site, waiting, "KILL {}")


@cause("MariaDB", "a smaller max_allowed_packet", "it is larger than max_allowed_packet", UPLOAD)
def limit_packets(site):
    ((before,),) = execute(site.admin, "SELECT @@max_allowed_packet")
    limit = "SET GLOBAL max_allowed_packet ="
    with statements(site, [f"{limit} 16384"], [f"{limit} {before}"]):
        yield


# -- What the API does -------------------------------------------------------------------------------------------------


def suffer(api, bearer, site, cause):
    """Let an outage happen, and wait until it is over for the API.

    Returns the response, the log's lines about it, and how long the API needed until it served again, in seconds.
    """
    api.settle()
    before = len(api.output)
    with cause.happen(site):
        answer = ask(api.url, *cause.request, bearer)
        assert answer[0] == 503, answer
        wait_until(lambda: any(" ERROR " in line for line in api.output[before:]))
        lines = [line for line in api.output[before:] if " INFO " not in line]
    begin = time.monotonic()
    wait_until(lambda: ask(api.url, *cause.request, bearer)[0] in (200, 204))
    return answer, lines, time.monotonic() - begin
