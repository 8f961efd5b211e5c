"""Which database holds the catalogue, and what differs between SQLite, PostgreSQL and MariaDB: one class for each.

`db` is the database that DATABASE_URL names. Nothing is opened before the first query.
"""

import contextlib
import functools
import getpass
import glob
import logging
import os
import pathlib
import random
import re
import sqlite3
import sys
import threading
import time

import peewee
from playhouse import db_url
from playhouse.migrations import Runner
from playhouse.pool import PooledMySQLDatabase, PooledPostgresqlDatabase

from settings import DATABASE_URL, URL_RULE

MIGRATIONS = pathlib.Path(__file__).with_name("migrations")
BUSY_SECONDS = 5  # how long a write to SQLite waits for another one, and how long conflicts are retried
CONNECT_SECONDS = 1  # how long it may take to connect to a database server
log = logging.getLogger("course_api")


def driver_error(error):
    """Return the driver's own error, which Peewee has wrapped, sometimes twice."""
    while getattr(error, "orig", None):
        error = error.orig
    return error


class SQLite(peewee.SqliteDatabase):
    """A SQLite file, or a database in memory that all threads share."""

    pooled = False
    json_object, json_array = "json_object", "json_group_array"
    json_type = "BLOB"  # copied less often than text
    to_bytes = bytes
    like = "LIKE"  # finds ASCII text in any case
    match, any_text, escape = "GLOB", "*", staticmethod(glob.escape)  # finds any text by a pattern
    reads_by_id = True  # a full scan returns rows in the order of their ids
    row_lock = ""  # a transaction that writes has locked everything
    table_lock = "SELECT 1"
    migration_lock = "SELECT 1"
    scrub = "VACUUM"  # removes deleted text from the file
    time_limit = contextlib.nullcontext
    mistakes = {
        None,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_INTERNAL,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
    pragmas = {
        "journal_mode": "wal",
        "synchronous": "full",  # WAL alone can lose an acknowledged write in a power cut (sqlite.org/pragma.html)
        "foreign_keys": "on",
        "cache_size": -8000,  # KiB; a page out of 100,000 courses takes half as long as with 2000 (measured)
    }

    def __init__(self, path, **options):
        self.in_memory = path in (":memory:", "")
        self.label = f"sqlite:///{':memory:' if self.in_memory else os.path.abspath(path)}"
        self.reads_never_wait = not self.in_memory  # thanks to WAL, which a database in memory does not have
        if self.in_memory:  # ":memory:" is one database per connection; this one is shared by all threads
            path, options = "file:/courses?vfs=memdb", {"uri": True}
        super().__init__(path, **{"timeout": BUSY_SECONDS, "pragmas": self.pragmas} | options)

    @classmethod
    def from_url(cls, url):
        path = url.removeprefix("sqlite://").removeprefix("/").partition("?")[0]  # to the letter, with any "#"
        options = db_url.parse(url.replace("#", "%23"))
        return cls(path, **{name: value for name, value in options.items() if name != "database"})

    def write_transaction(self):
        """Return a transaction that locks the database at its start, so that it never fails for a lock later."""
        return self.atomic("IMMEDIATE")

    def discard(self):
        """Close this thread's connection, so that the next query opens a new one."""
        self.close()

    def upsert(self, key, columns):
        """Return the SQL with which an INSERT changes the rows whose key exists."""
        return f"ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in columns)

    def is_duplicate(self, error, table, column):
        """Return whether an error says that a value of this unique column is taken."""
        return str(error) == f"UNIQUE constraint failed: {table}.{column}"

    def is_conflict(self, error):
        """Return whether an error undid work that may succeed when it is tried again."""
        return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_outage(self, error):
        """Return whether the database refused a statement for a reason that is not the statement."""
        return primary_code(error) not in self.mistakes


def primary_code(error):
    """Return SQLite's primary result code of an error (sqlite.org/rescode.html), or None if it has none."""
    code = getattr(driver_error(error), "sqlite_errorcode", None)
    return code and code & 0xFF


class ServerPool:
    """What both servers' classes add to Peewee's pools: a circuit breaker, and a time limit during requests."""

    pooled, in_memory, reads_never_wait, reads_by_id = True, False, False, False
    to_bytes = staticmethod(str.encode)
    row_lock = "FOR UPDATE"
    circuit_open_until = 0  # on the monotonic clock, in seconds

    def __init__(self, database, **options):
        super().__init__(database, **options)
        self.request = threading.local()  # has `limit`, SQL in front of each statement, during a request
        self.has_own_limit = "statement_time" in f"{options}{os.environ.get('PGOPTIONS', '')}"

    @classmethod
    def from_url(cls, url):
        options = db_url.parse(url.replace("#", "%23"), unquote_password=True, unquote_user=True)
        database = cls(**cls.default_options | options | cls.fixed_options)
        database.label = safe_label(url)
        return database

    def _connect(self):
        """Fail fast for a second after a failure: Peewee lets one thread connect at a time, and the others wait."""
        if time.monotonic() < self.circuit_open_until:
            raise peewee.OperationalError("could not connect a moment ago")
        try:
            return super()._connect()
        except Exception:
            self.circuit_open_until = time.monotonic() + CONNECT_SECONDS
            raise

    @contextlib.contextmanager
    def time_limit(self):
        """Limit the time of this thread's statements in the block, unless DATABASE_URL or PGOPTIONS does."""
        self.request.limit = "" if self.has_own_limit else self.statement_limit
        try:
            yield
        finally:
            self.request.limit = ""

    def execute_sql(self, sql, params=None):
        return super().execute_sql(getattr(self.request, "limit", "") + sql, params)

    def write_transaction(self):
        return self.atomic()

    def discard(self):
        """Close this thread's connection instead of returning it to the pool."""
        self.manual_close()


class PostgreSQL(ServerPool, PooledPostgresqlDatabase):
    default_options = {  # which DATABASE_URL can change; at most one connection for each thread
        "max_connections": 0,
        "stale_timeout": 300,  # seconds
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1500,  # milliseconds
    }
    fixed_options = {"client_encoding": "UTF8", "encoding": None}
    statement_limit = "SET LOCAL statement_timeout = 1500; "  # milliseconds
    json_object, json_array, json_type = "json_build_object", "json_agg", "TEXT"
    like = "ILIKE"
    match, any_text, escape = "~", "", staticmethod(re.escape)
    table_lock = "LOCK TABLE {} IN EXCLUSIVE MODE"  # others can only read until the transaction ends
    migration_lock = "SELECT pg_advisory_xact_lock(5000)"
    scrub = "VACUUM FULL users"
    # The classes of SQLSTATE that blame the statement or its values (PostgreSQL's Appendix A).
    mistakes = {"0A", "20", "21", "22", "23", "26", "27", "2F", "34", "38", "39", "42", "44", "54", "P0"}

    def upsert(self, key, columns):
        return f"ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in columns)

    def is_duplicate(self, error, table, column):
        if sqlstate(error) != "23505":  # unique_violation
            return False
        diag = driver_error(error).diag
        return diag.table_name == table and f"({column})=" in (diag.message_detail or "")

    def is_conflict(self, error):
        return sqlstate(error) in ("40001", "40P01")  # a serialization failure, a deadlock

    def is_outage(self, error):
        state = sqlstate(error)
        if not state:  # no answer of the server
            return type(error) in (peewee.OperationalError, peewee.InterfaceError, peewee.DatabaseError)
        return state == "42501" or state[:2] not in self.mistakes  # insufficient privilege


def sqlstate(error):
    """Return PostgreSQL's code of an error, or None if it has none."""
    return getattr(driver_error(error), "pgcode", None)


class MariaDB(ServerPool, PooledMySQLDatabase):
    LISTS = "group_concat_max_len = 1073741824"  # bytes; without it, JSON_ARRAYAGG gives NULL for a long list
    FOUND_ROWS = 2  # an UPDATE that changes nothing counts its rows too
    default_options = {
        "max_connections": 0,
        "stale_timeout": 300,  # seconds
        "connect_timeout": CONNECT_SECONDS,
        "init_command": f"SET {LISTS}",
    }
    fixed_options = {"charset": "utf8mb4", "client_flag": FOUND_ROWS}
    statement_limit = f"/*M! SET STATEMENT max_statement_time = 1.5, {LISTS} FOR */ "  # seconds; MySQL skips it
    json_object, json_array, json_type = "JSON_OBJECT", "JSON_ARRAYAGG", "CHAR"
    like = ""
    match, any_text, escape = "REGEXP", "", staticmethod(re.escape)
    table_lock = "SELECT COUNT(*) FROM {} FOR UPDATE"  # locks all rows, and the gaps between them
    migration_lock = "SELECT GET_LOCK(CONCAT(DATABASE(), ' schema'), 3600)"  # held until the connection closes
    scrub = "OPTIMIZE TABLE users"
    # The numbers that blame the statement or its values, but that PyMySQL counts as operational: unknown or ambiguous
    # columns, wrong counts, types, functions, patterns and values, a trigger's own error, a CHECK.
    mistakes = {1052, 1054, 1136, 1139, 1210, 1241, 1242, 1267, 1292, 1305, 1318, 1364, 1442, 1582, 1644, 1690, 4025}

    def upsert(self, key, columns):  # noqa: ARG002 (MariaDB finds the key itself)
        return "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in columns)

    def is_duplicate(self, error, table, column):  # noqa: ARG002 (the message names only the index)
        return error.args[0] == 1062 and re.search(rf"['._]{column}'$", str(error.args[1])) is not None

    def is_conflict(self, error):
        return error.args[0] in (1020, 1213)  # a changed row, a deadlock

    def is_outage(self, error):
        kinds = (peewee.OperationalError, peewee.InternalError, peewee.InterfaceError, peewee.DatabaseError)
        return type(error) in kinds and error.args[0] not in self.mistakes


SCHEMES = {"sqlite": SQLite, "postgres": PostgreSQL, "postgresql": PostgreSQL, "mysql": MariaDB, "mariadb": MariaDB}


def safe_label(url):
    """Return a server's URL without user, password and options; of an ambiguous one only the scheme."""
    scheme, _, rest = url.partition("://")
    place = re.fullmatch(r"(?:[^/?@]*@)?([^/?@]*/[^/?@]*)(?:\?[^@]*)?", rest)
    return f"{scheme}://{place[1] if place else '...'}"


def connect(url):
    """Return the database that a URL names, not yet opened; exit with one line if it names none."""
    try:
        return SCHEMES[url.partition(":")[0]].from_url(url)
    except (TypeError, ValueError):
        sys.exit(f"DATABASE_URL must be {URL_RULE}; percent-encode the password, and check port and options")


db = connect(DATABASE_URL)


def retry_conflicts(operation):
    """Decorate one statement or transaction so that it is retried, for BUSY_SECONDS, when a conflict undoes it."""

    @functools.wraps(operation)
    def wrapper(*args, **kwargs):
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return operation(*args, **kwargs)
            except peewee.OperationalError as error:
                if not db.is_conflict(error) or time.monotonic() > deadline or db.in_transaction():
                    raise
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 (not a secret: so that the same two do not meet again)

    return wrapper


@retry_conflicts
def init_db(target=db):
    """Bring the schema up to date, in one transaction where the database supports that; other processes wait.

    Raises peewee.DatabaseError if a newer version has created the schema.
    """
    runner = Runner(target, MIGRATIONS)
    steps = runner.status()
    newer = [step.name for step in steps if not step.path]
    if newer:
        raise peewee.DatabaseError(f"created by a newer version ({newer[-1]}); upgrade, or restore a backup")
    if not all(step.applied for step in steps):
        with target.write_transaction():
            target.execute_sql(target.migration_lock)
            applied = runner.up()
        if applied:  # and not by another process
            target.execute_sql(target.scrub)
            log.info("brought the schema up to date: %s", ", ".join(applied))
    if target.pooled:
        target.manual_close()  # MariaDB's lock ends with the connection


@contextlib.contextmanager
def exit_if_unusable():
    """Exit with one line if the database cannot be used in this block."""
    try:
        yield
    except (peewee.PeeweeException, TypeError) as error:  # TypeError: the driver does not know an option
        hint, folder = "check DATABASE_URL", os.path.dirname(os.path.abspath(db.database))
        if isinstance(error, peewee.ImproperlyConfigured):
            hint = "install the drivers: pip install -r requirements-servers.txt"
        elif not db.pooled and not os.access(folder, os.W_OK):
            hint = f"user {getattr(os, 'getuid', getpass.getuser)()} cannot write to the folder {folder}"
        sys.exit(f"cannot use the database {db.label}: {' '.join(str(error).split())}; {hint}")
