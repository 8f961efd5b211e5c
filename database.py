"""Which database holds the catalogue, and what differs between SQLite, PostgreSQL and MariaDB: one class for each.

What both servers share is in ServerPool. The docstrings of SQLite's methods hold for the methods of all three.
`db` is the database that DATABASE_URL names. Nothing is opened before the first query.
"""

import contextlib
import errno
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
from playhouse.migrations import Runner
from playhouse.pool import MaxConnectionsExceeded, PooledMySQLDatabase, PooledPostgresqlDatabase

from database_url import CONNECT_SECONDS, Connector, UrlError, parse_server_url, parse_sqlite_url
from settings import DATABASE_URL, URL_RULE

MIGRATIONS = pathlib.Path(__file__).with_name("migrations")
BUSY_SECONDS = 5  # how long a write to SQLite waits for another one, and how long conflicts are retried
# The usual words for an outage, whatever the database calls it.
FULL, READ_ONLY, LOCKED = "the disk is full", "the database is read-only", "another program has locked it"
TOO_MANY, NO_RIGHT, NO_LOGIN = "there are too many connections", "a right is missing", "the user or password is refused"
TOO_LONG, TOO_LARGE = "a statement took too long, or waited for a lock", "it is larger than max_allowed_packet"
log = logging.getLogger("course_api")


def driver_error(error):
    """Return the driver's own error, which Peewee has wrapped, sometimes twice."""
    while getattr(error, "orig", None):
        error = error.orig
    return error


def sqlite_code(error):
    """Return SQLite's primary result code of an error (sqlite.org/rescode.html), or None if it has none."""
    code = getattr(driver_error(error), "sqlite_errorcode", None)
    return code and code & 0xFF


def sqlstate(error):
    """Return PostgreSQL's code of an error, or None if it has none."""
    return getattr(driver_error(error), "pgcode", None)


def mariadb_number(error):
    """Return MariaDB's number of an error, or None if it has none."""
    return error.args[0] if error.args else None


class SQLite(peewee.SqliteDatabase):
    """A SQLite file, or a database in memory that all threads share."""

    pooled = False
    json_object, json_array = "json_object", "json_group_array"
    json_type = "BLOB"  # copied less often than text
    to_bytes = bytes
    like = "LIKE"  # finds ASCII text in any case
    match, any_text, escape = "GLOB", "*", staticmethod(glob.escape)  # finds any text by a pattern
    reads_by_id = True  # a full scan returns rows in the order of their ids
    row_lock = share_lock = ""  # a transaction that writes has locked everything
    table_lock = "SELECT 1"
    migration_lock = "SELECT 1"
    read_mark, write_mark = "PRAGMA user_version", "PRAGMA user_version = {}"
    for_request = contextlib.nullcontext
    code = staticmethod(sqlite_code)
    reasons = {sqlite3.SQLITE_FULL: FULL, sqlite3.SQLITE_READONLY: READ_ONLY, sqlite3.SQLITE_BUSY: LOCKED}
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
        "temp_store": "memory",  # the disk may have no folder for temporary files
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
        path, options = parse_sqlite_url(url)
        return cls(path, **options)

    def _connect(self):
        """Create the file for its owner alone; SQLite gives the files beside it the same mode."""
        if not (self.in_memory or self.connect_params.get("uri") or os.path.exists(self.database)):
            with contextlib.suppress(OSError):  # SQLite says why
                os.close(os.open(self.database, os.O_RDWR | os.O_CREAT, 0o600))
        return super()._connect()

    def rollback(self):
        """Roll back, unless SQLite has done so by itself, as it does when the disk is full."""
        if self.connection().in_transaction:
            super().rollback()

    def write_transaction(self):
        """Return a transaction that locks the database at its start, so that it never fails for a lock later."""
        return self.atomic("IMMEDIATE")

    @contextlib.contextmanager
    def commit_together(self):
        """Commit what several requests write in the block at its end, or undo it if the block raises an exception.

        Raises peewee.OperationalError at once if another program has locked the database.
        """
        self.execute_sql("PRAGMA busy_timeout = 0")
        try:
            with self.write_transaction():
                yield
        finally:
            self.execute_sql(f"PRAGMA busy_timeout = {1000 * self.timeout:.0f}")  # milliseconds

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
        return sqlite_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def is_outage(self, error):
        """Return whether the database refused a statement for a reason that is not the statement."""
        return sqlite_code(error) not in self.mistakes

    def hint(self, error):
        """Return what an operator can do about an error at start, in words."""
        path, user = os.path.realpath(self.database), getattr(os, "getuid", getpass.getuser)()
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            return f"there is no folder {folder}"
        if os.path.isdir(path):
            return f"{path} is a folder; name a file in it"
        for file in (path, f"{path}-wal", f"{path}-shm"):
            if os.path.exists(file) and not os.access(file, os.R_OK | os.W_OK):
                return f"user {user} cannot read and write {file}, which belongs to user {os.stat(file).st_uid}"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"user {user} cannot write to the folder {folder}, which belongs to user {os.stat(folder).st_uid}"
        return "" if sqlite_code(error) in self.reasons else "check DATABASE_URL"

    def scrub(self):
        """Remove deleted text, such as old passwords, from the file and its journal."""
        self.execute_sql("VACUUM")
        deadline = time.monotonic() + BUSY_SECONDS
        while self.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:  # busy, as when copies start at once
            if time.monotonic() > deadline:
                message = "another program keeps reading, so that deleted passwords stay in the file"
                raise peewee.OperationalError(message)
            time.sleep(0.05)


class ServerPool:
    """What both servers' classes add to Peewee's pools: a circuit breaker, and a time limit during requests."""

    pooled, in_memory, reads_never_wait, reads_by_id = True, False, False, False
    commit_together = None  # servers commit what several connections write at once by themselves
    to_bytes = staticmethod(str.encode)
    row_lock = "FOR UPDATE"
    circuit_open_until, circuit_reason = 0, ""  # on the monotonic clock, in seconds

    def __init__(self, database, **options):
        super().__init__(database, **options)
        self.request = threading.local()  # has `limit`, SQL in front of each statement, during a request
        self.has_own_limit = "statement_time" in f"{options}{os.environ.get('PGOPTIONS', '')}"

    @classmethod
    def from_url(cls, url):
        label, options = parse_server_url(url)
        cls.check_options(options)
        database = cls(**cls.default_options | options | cls.fixed_options)
        database.label = label
        return database

    @staticmethod
    def check_options(options):
        """Raise ValueError for options that would do less than they seem to."""

    def _connect(self):
        """Fail fast for a second after a failure: Peewee lets one thread connect at a time, and the others wait."""
        if time.monotonic() < self.circuit_open_until:
            raise peewee.OperationalError(f"could not connect a moment ago: {self.circuit_reason}")
        try:
            return super()._connect()
        except MaxConnectionsExceeded:
            raise
        except Exception as error:
            self.circuit_reason = error
            self.circuit_open_until = time.monotonic() + CONNECT_SECONDS
            raise

    def connect(self, reuse_if_open=False):
        try:
            return super().connect(reuse_if_open)
        except MaxConnectionsExceeded as error:  # of DATABASE_URL's own max_connections
            raise peewee.OperationalError(str(error)) from None

    def rollback(self):
        """Roll back; if the connection is lost, the transaction is too, and the error before this one says why."""
        with contextlib.suppress(peewee.OperationalError, peewee.InterfaceError):
            super().rollback()

    @contextlib.contextmanager
    def for_request(self):
        """Limit the time of this thread's statements in the block, then return its connection to the pool.

        DATABASE_URL or PGOPTIONS can set another limit.
        """
        self.request.limit = "" if self.has_own_limit else self.statement_limit
        try:
            yield
        finally:
            self.request.limit = ""
            self.close()

    def execute_sql(self, sql, params=None):
        return super().execute_sql(getattr(self.request, "limit", "") + sql, params)

    def write_transaction(self):
        return self.atomic()

    def discard(self):
        """Close this thread's connection instead of returning it to the pool."""
        self.manual_close()

    def hint(self, error):
        """Return what an operator can do about an error at start, in words."""
        if self.reasons.get(self.code(error)) == NO_RIGHT:
            user = self.connect_params.get("user") or "of DATABASE_URL"
            return f"user {user} must own the tables, and have the right CREATE on the schema or database"
        return "" if self.code(error) in self.reasons else "check DATABASE_URL"

    def scrub(self):
        """Remove deleted text, such as old passwords, from the table's files."""
        self.execute_sql(self.scrub_sql)


class UnpooledPostgreSQL(Connector, peewee.PostgresqlDatabase):
    pass


class UnpooledMariaDB(Connector, peewee.MySQLDatabase):
    pass


class PostgreSQL(ServerPool, PooledPostgresqlDatabase, UnpooledPostgreSQL):
    default_options = {  # which DATABASE_URL can change; at most one connection for each thread
        "max_connections": 0,
        "stale_timeout": 300,  # seconds
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1500,  # milliseconds
    }
    fixed_options = {"client_encoding": "UTF8", "encoding": None}
    statement_limit = "SET LOCAL statement_timeout = 1500; "  # milliseconds
    share_lock = "FOR SHARE"  # so that rows stay as they are until the transaction ends
    json_object, json_array, json_type = "json_build_object", "json_agg", "TEXT"
    like = "ILIKE"
    match, any_text, escape = "~", "", staticmethod(re.escape)
    table_lock = "LOCK TABLE {} IN EXCLUSIVE MODE"  # others can only read until the transaction ends
    migration_lock = "SELECT pg_advisory_xact_lock(5000)"
    scrub_sql = "VACUUM FULL users"
    read_mark = "SELECT obj_description('users'::regclass)"
    write_mark = "COMMENT ON TABLE users IS 'scrubbed, migrations applied: {}'"
    code = staticmethod(sqlstate)
    reasons = {
        "53100": FULL,
        "25006": READ_ONLY,
        "55P03": LOCKED,
        "42501": NO_RIGHT,
        "57014": TOO_LONG,
    }
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


class MariaDB(ServerPool, PooledMySQLDatabase, UnpooledMariaDB):
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
    share_lock = "LOCK IN SHARE MODE"
    json_object, json_array, json_type = "JSON_OBJECT", "JSON_ARRAYAGG", "CHAR"
    like = ""
    match, any_text, escape = "REGEXP", "", staticmethod(re.escape)
    table_lock = "SELECT COUNT(*) FROM {} FOR UPDATE"  # locks all rows, and the gaps between them
    migration_lock = "SELECT GET_LOCK(CONCAT(DATABASE(), ' schema'), 3600)"  # held until the connection closes
    scrub_sql = "OPTIMIZE TABLE users"
    read_mark = (  # MAX gives a row also while another copy rewrites the table, which is then missing there
        "SELECT MAX(table_comment) FROM information_schema.tables "
        "WHERE table_schema = DATABASE() AND table_name = 'users'"
    )
    write_mark = "ALTER TABLE users COMMENT = 'scrubbed, migrations applied: {}'"
    code = staticmethod(mariadb_number)
    reasons = {
        **dict.fromkeys([1021, 1114], FULL),
        **dict.fromkeys([1290, 1792, 1836], READ_ONLY),
        **dict.fromkeys([1040, 1203, 1226], TOO_MANY),
        **dict.fromkeys([1044, 1142, 1143, 1370], NO_RIGHT),
        1045: NO_LOGIN,
        1153: TOO_LARGE,
        **dict.fromkeys([1205, 1969, 3024], TOO_LONG),
    }
    # The numbers that blame the statement or its values, but that PyMySQL counts as operational: unknown or ambiguous
    # columns, wrong counts, types, functions, patterns and values, a trigger's own error, a CHECK.
    mistakes = {1052, 1054, 1136, 1139, 1210, 1241, 1242, 1267, 1292, 1305, 1318, 1364, 1442, 1582, 1644, 1690, 4025}

    @staticmethod
    def check_options(options):
        """Refuse half of what checks a certificate; make the password UTF-8, since PyMySQL would make it Latin-1."""
        if options.get("ssl_ca") and not (options.get("ssl_verify_cert") or options.get("ssl_verify_identity")):
            raise UrlError("ssl_ca checks nothing without ssl_verify_identity=true; add that")
        if options.get("ssl_verify_identity") and not options.get("ssl_ca"):
            raise UrlError("ssl_verify_identity=true checks nothing without ssl_ca; add that")
        if "password" in options:
            options["password"] = options["password"].encode()

    def upsert(self, key, columns):  # noqa: ARG002 (MariaDB finds the key itself)
        return "ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in columns)

    def is_duplicate(self, error, table, column):
        index = re.search(r"([^.']+)'$", str(error.args[1]))  # the message names only the index
        if error.args[0] != 1062 or not index:
            return False
        return any(one.name == index[1] and one.columns == [column] for one in self.get_indexes(table))

    def is_conflict(self, error):
        return error.args[0] in (1020, 1213)  # a changed row, a deadlock

    def is_outage(self, error):
        kinds = (peewee.OperationalError, peewee.InternalError, peewee.InterfaceError, peewee.DatabaseError)
        return type(error) in kinds and error.args[0] not in self.mistakes


# -- The database that DATABASE_URL names ------------------------------------------------------------------------------

SCHEMES = {"sqlite": SQLite, "postgres": PostgreSQL, "postgresql": PostgreSQL, "mysql": MariaDB, "mariadb": MariaDB}


def from_url(url):
    """Return the database that a URL names, not yet opened; exit with one line if it names none."""
    try:
        return SCHEMES[url.partition(":")[0]].from_url(url)
    except UrlError as error:
        sys.exit(f"DATABASE_URL: {error}")
    except (TypeError, ValueError):
        sys.exit(f"DATABASE_URL must be {URL_RULE}; percent-encode the password, and check port and options")


db = from_url(DATABASE_URL)


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
            log.info("brought the schema up to date: %s", ", ".join(applied))
    scrub(target, len(steps))
    if target.pooled:
        target.manual_close()  # MariaDB's lock ends with the connection


def scrub(target, number):
    """Remove the text that migrations have deleted, once; a mark in the database holds their number.

    An earlier release leaves no mark. What fails is tried again at the next start.
    """
    (mark,) = target.execute_sql(target.read_mark).fetchone()
    if str(mark).rpartition(" ")[2] != str(number):
        target.scrub()
        target.execute_sql(target.write_mark.format(number))


def describe(error):
    """Return in one line what is wrong: in the usual words if there are some, and in the driver's."""
    words = FULL if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) else db.reasons.get(db.code(error))
    text = getattr(error, "strerror", None) or ", ".join(map(str, error.args))
    text = " ".join(text.split())
    return f"{words} ({text})" if words else text


@contextlib.contextmanager
def exit_if_unusable():
    """Exit with one line if the database cannot be used in this block."""
    try:
        yield
    except (peewee.PeeweeException, TypeError) as error:  # TypeError: the driver does not know an option
        text, hint = describe(error), db.hint(error)
        if isinstance(error, peewee.ImproperlyConfigured):
            hint = "install the drivers: pip install -r requirements-servers.txt"
        sys.exit(f"cannot use the database {db.label}: {text}" + (f"; {hint}" if hint else ""))
