"""The catalogue's data: the database, courses, users, and every query. It knows no HTTP.

From a Python prompt, after `python seed.py`:

    >>> from models import Course, User
    >>> Course.add_course("CSE225", "Ada Lovelace", "Data structures")
    >>> Course.get_course("CSE225")
    {'id': 3, 'code': 'CSE225', 'name': 'Data structures', 'instructor': 'Ada Lovelace'}
    >>> User.match_user("faisal", "faisal")
    True
"""

import contextlib
import csv
import functools
import io
import itertools
import operator
import os
import random
import re
import secrets
import selectors
import sqlite3
import sys
import time
from typing import NamedTuple

import argon2
import msgspec
import peewee
from peewee import SQL, Case, Expression, NodeList, fn
from playhouse import db_url
from playhouse.cockroachdb import PooledCockroachDatabase
from playhouse.migrations import Runner
from playhouse.pool import PooledDatabase, PooledMySQLDatabase, PooledPostgresqlDatabase

# -- The database ------------------------------------------------------------------------------------------------------

DATABASE_URL = os.environ.get("DATABASE_URL") or "sqlite:///courses.db"
DATABASE_NAME = re.sub(r"//.*@", "//", DATABASE_URL).partition("?")[0]  # what may be shown: no user, no password
IN_MEMORY = DATABASE_URL in ("sqlite:///:memory:", "sqlite:///", "sqlite://")
BUSY_SECONDS = 5  # how long a write in SQLite waits for another one to end, and how long conflicts are tried again
SERVER_SECONDS = 1.5  # how long a request lets a database server take for a statement
MOST_SECONDS = SERVER_SECONDS + 0.2  # and waits: as a rule it is the server that gives up, and has done nothing then
MIGRATIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "migrations")


def can_use(socket, event, seconds):
    """Return whether a socket can be read, or written, within so many seconds."""
    with getattr(selectors, "PollSelector", selectors.DefaultSelector)() as selector:  # the cheapest for one
        selector.register(socket, event)
        return bool(selector.select(seconds))


class Pool(PooledDatabase):
    """Peewee's pool, with fewer questions to the server, and without a queue for one that has gone away.

    A thread has one connection at most, so that the pool needs no limit of its own.
    """

    away_until = 0  # on the monotonic clock

    def leave_alone(self):
        """Let nobody connect until all who wait for an answer have given up: connecting holds up who hands back."""
        self.away_until = time.monotonic() + MOST_SECONDS

    def _connect(self):
        if time.monotonic() < self.away_until:
            raise peewee.OperationalError("it did not answer a moment ago")
        try:
            return super()._connect()
        except Exception:
            self.leave_alone()
            raise

    def execute_sql(self, sql, params=None):
        try:
            return super().execute_sql(sql, params)
        except peewee.OperationalError as error:
            if "timed out" in str(error):  # by PyMySQL, or by wait() below; a server has other words when it gives up
                self.leave_alone()
            raise

    def _is_closed(self, connection):
        """Return whether the server has closed an idle connection: then, and only then, there is something to read."""
        return can_use(getattr(connection, "_sock", connection), selectors.EVENT_READ, 0)  # PyMySQL's has no fileno()

    def _can_reuse(self, connection):
        """Return whether a connection has lived through its request."""
        return connection.open if hasattr(connection, "open") else not connection.closed


for pooled, *schemes in (
    (PooledPostgresqlDatabase, "postgres", "postgresql"),
    (PooledCockroachDatabase, "cockroachdb"),
    (PooledMySQLDatabase, "mysql", "mariadb"),
):
    db_url.register_database(type(pooled.__name__, (Pool, pooled), {}), *schemes)

COLLATION, BEGIN, MIGRATION_LOCK = None, (), "SELECT 1"  # SQLite compares by characters' numbers without being told
if DATABASE_URL.startswith("sqlite"):
    # FULL: an acknowledged write survives a power cut, which WAL alone does not promise (sqlite.org/pragma.html).
    # 8 MB of cache for each connection, not 2: a page out of 100,000 courses takes half as long (measured).
    pragmas = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": "on", "cache_size": -8000}
    OPTIONS, REQUEST_OPTIONS = {"timeout": BUSY_SECONDS, "pragmas": pragmas}, {}
    BEGIN = ("IMMEDIATE",)
elif DATABASE_URL.startswith(("postgres", "cockroachdb")):
    OPTIONS = {"connect_timeout": 5, "stale_timeout": 300}
    REQUEST_OPTIONS = {"options": f"-c statement_timeout={SERVER_SECONDS * 1000:.0f}"}
    if DATABASE_URL.startswith("postgres"):  # CockroachDB has neither, and does not need them
        COLLATION, MIGRATION_LOCK = '"C"', "SELECT pg_advisory_xact_lock(5000)"
else:
    # JSON_ARRAYAGG gives NULL for what is longer; max_allowed_packet stays a limit. An update that changes
    # nothing counts as one only with FOUND_ROWS, 2.
    session = "SET SESSION group_concat_max_len = 4294967295"
    OPTIONS = {"connect_timeout": 5, "stale_timeout": 300, "init_command": session, "client_flag": 2}
    REQUEST_OPTIONS = {
        "connect_timeout": MOST_SECONDS,
        "read_timeout": MOST_SECONDS,
        "write_timeout": MOST_SECONDS,
        "init_command": f"{session} /*M! , max_statement_time = {SERVER_SECONDS} */",  # MySQL has no such variable
    }
    COLLATION, MIGRATION_LOCK = "utf8mb4_nopad_bin", "SELECT GET_LOCK(CONCAT(DATABASE(), ' schema'), 3600)"
if IN_MEMORY:
    # SQLite's ":memory:" is one database per connection. This one is for all threads, and lives as long as `keeper`.
    OPTIONS |= {"database": "file:/courses?vfs=memdb", "uri": True}
    keeper = sqlite3.connect(OPTIONS["database"], uri=True)

try:
    database = db_url.connect(DATABASE_URL, unquote_user=True, unquote_password=True, **OPTIONS)
except (RuntimeError, ValueError, peewee.PeeweeException):
    sys.exit(f"DATABASE_URL: {DATABASE_NAME} is not like sqlite:///courses.db or postgresql://user@host/name")

is_pooled = isinstance(database, Pool)

# What tells that a conflict with another client has undone a statement, or the transaction it is in: the SQLSTATEs of
# PostgreSQL and CockroachDB for a serialization failure and a deadlock, MariaDB's numbers for the same, and SQLite's.
CONFLICTS = {"40001", "40P01", 1020, 1213, "database is locked", "database table is locked"}


def retried(operation):
    """Return the operation, one statement or one transaction, such that it is tried again after a conflict.

    That is safe, for it is as if it had never been. There are ten attempts at most, within BUSY_SECONDS, with pauses of
    random length, lest the same two meet again.
    """

    @functools.wraps(operation)
    def attempt(*args, **kwargs):
        end, attempts = time.monotonic() + BUSY_SECONDS, 0
        while True:
            try:
                return operation(*args, **kwargs)
            except peewee.OperationalError as error:
                attempts += 1
                codes = {getattr(getattr(error, "orig", None), "pgcode", None), *error.args}
                too_late = attempts == 10 or time.monotonic() > end or database.in_transaction()
                if too_late or not codes & CONFLICTS:
                    raise
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 (jitter, not a secret)

    return attempt


database.execute_sql = retried(database.execute_sql)  # each statement of each query, but for those in a transaction


@retried
def migrate():
    """Bring the schema up to date, in a transaction where the database can, while other copies wait.

    Stops the program where the schema is of a newer release. A lock of MariaDB's is held until its connection closes.
    """
    runner = Runner(database, MIGRATIONS)
    steps = runner.status()
    unknown = [step.name for step in steps if not step.path]
    if unknown:
        sys.exit(f"the database {DATABASE_NAME} is of a newer release, with {unknown[-1]}: use that, or a backup")
    if not all(step.applied for step in steps):
        with database.atomic(*BEGIN):
            database.execute_sql(MIGRATION_LOCK)
            runner.up()


def prepare():
    """Bring the schema up to date; stop the program with one line where the database cannot be used."""
    try:
        migrate()
        disconnect()
    except (peewee.PeeweeException, TypeError) as error:
        sys.exit(f"the database {DATABASE_NAME} cannot be used: {error}; check DATABASE_URL")


def disconnect():
    """Close this thread's connection, and the pool's."""
    database.close()
    if is_pooled:
        database.close_idle()


def serve_requests():
    """Let nobody wait long for a server from now on; and disconnect, for a fork must not share a connection."""
    disconnect()
    database.connect_params |= REQUEST_OPTIONS
    if is_pooled and isinstance(database, peewee.PostgresqlDatabase):
        import psycopg2

        def wait(connection):
            """Wait for PostgreSQL to connect or to answer, which psycopg2 by itself would do for ever."""
            end = time.monotonic() + MOST_SECONDS
            while (state := connection.poll()) != psycopg2.extensions.POLL_OK:
                event = selectors.EVENT_READ if state == psycopg2.extensions.POLL_READ else selectors.EVENT_WRITE
                if not can_use(connection, event, max(0, end - time.monotonic())):
                    raise psycopg2.OperationalError("it timed out")

        psycopg2.extensions.set_wait_callback(wait)


def backup(path):
    """Copy the SQLite database to a new file while it is in use; raise ValueError or OSError where that cannot be."""
    if not isinstance(database, peewee.SqliteDatabase):
        raise ValueError("only SQLite is copied; use pg_dump or mysqldump")
    if not os.path.exists(database.database):
        raise ValueError(f"there is no database {DATABASE_NAME}")
    if os.path.exists(path):
        raise FileExistsError(f"{path} is there already, and was left alone")
    part = f"{path}.part"
    with contextlib.closing(sqlite3.connect(part)) as copy:
        database.connection().backup(copy)
    os.replace(part, path)


def check_health():
    """Ask the database for an answer; raise peewee.OperationalError or InterfaceError where there is none."""
    database.execute_sql("SELECT 1").fetchone()


class BaseModel(peewee.Model):
    class Meta:
        database = database


# -- Fields: what they may hold ----------------------------------------------------------------------------------------


class Text(str):
    """A field's value: trimmed of white space at either end, and within the rule of its class.

    Raises TypeError or ValueError with a sentence for the client, which names the field and the rule.
    """

    __slots__ = ()
    limit = 120  # characters
    rule = "with no control characters"
    refused = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # surrogates too, which no database can store
    trim = str.strip

    def __new__(cls, value):
        field = cls.__name__.lower()
        if not isinstance(value, str):
            raise TypeError(f"{field} must be a string")
        value = cls.trim(value)
        if not 0 < len(value) <= cls.limit or cls.refused.search(value):
            raise ValueError(f"{field} must be 1 to {cls.limit} characters, {cls.rule}")
        return super().__new__(cls, value)


class Name(Text):
    pass


class Instructor(Text):
    pass


class Username(Text):
    limit = 80


class Password(Text):
    limit, rule, refused = 1024, "with no surrogates", re.compile(r"[\ud800-\udfff]")
    trim = str  # taken as it is


class Code(Text):
    # Clients take a "/" or a name of dots for a path of their own (RFC 3986 §5.2.4).
    limit, rule = 20, "with no / and no control characters, and not only dots"
    refused = re.compile(Text.refused.pattern + r"|/|^\.+$")
    missing = "course code must be provided"

    def __new__(cls, value):
        if isinstance(value, str) and not value.strip():
            raise ValueError(cls.missing)
        return super().__new__(cls, value)


# -- Courses -----------------------------------------------------------------------------------------------------------

FIELDS = ("id", "code", "name", "instructor")
BATCH = 1000  # courses in one INSERT
NO_LIMIT = 2**62  # rows; said even where there is none, since MariaDB sorts a subquery with a limit only


class Page(NamedTuple):
    """A part of the list."""

    total: int  # how many courses match, on all pages
    courses: bytes  # a JSON array
    cursor: str  # where the next page begins; empty on the last one


class UploadError(ValueError):
    """An upload that is refused: `rows` are pairs of a row's number and what is wrong with it.

    `conflict` tells that every row by itself could be added, but for codes that are taken.
    """

    def __init__(self, bad, taken):
        self.rows, self.conflict = sorted(bad + taken), not bad
        super().__init__(f"nothing was stored; rows refused: {len(self.rows)}")


def askable(code):
    """Return a code as every database can be asked for it: PostgreSQL takes no NUL, and no code has a slash."""
    return code.replace("\0", "/")


class Course(BaseModel):
    code = peewee.CharField(Code.limit, unique=True, collation=COLLATION)
    name = peewee.CharField(Name.limit, collation=COLLATION)
    instructor = peewee.CharField(Instructor.limit, collation=COLLATION)

    class Meta:
        table_name = "courses"

    @classmethod
    def add_course(cls, code, instructor, name):
        """Add a course; raise ValueError for a bad field, peewee.IntegrityError where the code is taken."""
        database.execute_sql(ADD_COURSE, (Code(code), Name(name), Instructor(instructor)))

    @classmethod
    def add_courses(cls, rows, update=False, watch=iter):
        """Add courses, from dicts, all or none; return how many. Raise UploadError, which names each bad one.

        With `update` a course that exists is changed. `watch` may wrap what is iterated over in a progress bar.
        """
        courses, bad, taken = {}, [], []
        for number, row in enumerate(watch(rows), 1):
            try:
                code, *others = check_row(row)
                first, *_ = courses.setdefault(code, (number, code, *others))
                if first != number:
                    taken.append((number, f"Course code {code} is in row {first} too"))
            except (TypeError, ValueError) as error:
                bad.append((number, str(error)))
        for _attempt in range(3):  # a code that is taken may be free again when it is looked for
            if not (bad or taken):
                with contextlib.suppress(peewee.IntegrityError):
                    cls.store(courses.values(), update, watch)
                    return len(courses)
            for codes in [] if update else peewee.chunked(courses, BATCH):
                for (code,) in cls.select(cls.code).where(cls.code.in_(codes)).tuples():
                    taken.append((courses[code][0], f"Course code {code} is in the courses already"))
            if bad or taken:
                break
        raise UploadError(bad, taken)

    @classmethod
    @retried
    @database.atomic()
    def store(cls, courses, update, watch):
        """Add courses that are good, each a tuple of its number and its fields; raise peewee.IntegrityError."""
        for batch in peewee.chunked(watch(courses), BATCH):
            query = cls.insert_many([course[1:] for course in batch], [cls.code, cls.name, cls.instructor])
            (query.on_conflict(**UPSERT) if update else query).execute()

    @classmethod
    def get_all_courses(cls):
        """Return every course as a dict, in the order they were added."""
        return msgspec.json.decode(cls.get_page().courses)

    @classmethod
    def get_course(cls, code):
        """Return a course as a dict, or None where there is none of this code."""
        return msgspec.json.decode(cls.get_json(code) or b"null")

    @classmethod
    def update_course(cls, code, instructor=None, name=None, old=None):
        """Change what is given of a course; return whether there is one of this code, and still as in `old`, a dict."""
        name = None if name is None else Name(name)
        instructor = None if instructor is None else Instructor(instructor)
        sql, where = (UPDATE_SAME, old.values()) if old else (UPDATE_COURSE, (askable(code),))
        return database.execute_sql(sql, (name, instructor, *where)).rowcount > 0

    @classmethod
    def delete_course(cls, code, old=None):
        """Delete a course; return whether there was one of this code, and still as in `old`, a dict."""
        sql, where = (DELETE_SAME, tuple(old.values())) if old else (DELETE_COURSE, (askable(code),))
        return database.execute_sql(sql, where).rowcount > 0

    @classmethod
    def get_json(cls, code):
        """Return a course as JSON, in bytes, or None."""
        row = database.execute_sql(ONE_COURSE, (askable(code),)).fetchone()
        return row and ENCODE(row[0])

    @classmethod
    def get_page(cls, q="", instructor="", sort="id", limit=0, offset=0, after=""):
        """Return a Page of the courses with `q` in any field, in any case, and with this instructor; of all by default.

        They are in the order of the field `sort` and then of id, descending with "-" in front. The page has up to
        `limit` courses, with 0 all. It begins after so many courses as `offset` says, or where a cursor says.
        """
        if ALL_COURSES and (q, instructor, sort, limit, offset, after) == ("", "", "id", 0, 0, ""):
            total, courses = database.execute_sql(*ALL_COURSES).fetchone()
            return Page(total, ENCODE(courses), "")
        number, _, value = after.partition(":")
        like, pattern = make_pattern(q) if q else ("", "")
        sql, names = page_query(sort, like, bool(instructor), bool(after), bool(limit or offset or after))
        values = {"q": pattern, "instructor": instructor, "value": value, "id": number and int(number)}
        values |= {"limit": limit + 1 if limit else NO_LIMIT, "offset": 0 if after else offset}
        total, courses = database.execute_sql(sql, [values[name] for name in names]).fetchone()
        if courses is None:  # MariaDB's way to say so
            raise peewee.OperationalError("the list is longer than max_allowed_packet; raise that, or ask for pages")
        courses, cursor = ENCODE(courses), ""
        if limit:
            rows = split_array(courses)
            if len(rows) > limit:
                last = msgspec.json.decode(rows[limit - 1])
                courses, cursor = b"[%b]" % b",".join(rows[:limit]), f"{last['id']}:{last[sort.lstrip('-')]}"
        return Page(total, courses, cursor)


# The database writes the JSON itself, each in its dialect: the functions for an object and an array, the type of what
# they give, and what makes bytes of it (SQLite's blobs are bytes, and copied less often).
UPSERT = {"conflict_target": [Course.code], "preserve": [Course.name, Course.instructor]}
if isinstance(database, peewee.SqliteDatabase):
    OBJECT, ARRAY, TYPE, ENCODE = "json_object", "json_group_array", "blob", bytes
elif isinstance(database, peewee.PostgresqlDatabase):
    OBJECT, ARRAY, TYPE, ENCODE = "json_build_object", "json_agg", "text", str.encode
    REGEXP = peewee.OP.REGEXP
else:
    OBJECT, ARRAY, TYPE, ENCODE = "JSON_OBJECT", "JSON_ARRAYAGG", "char", str.encode
    REGEXP = peewee.OP.IREGEXP  # Peewee's other one is BINARY, which takes bytes for characters
    del UPSERT["conflict_target"]  # MySQL's ON DUPLICATE KEY has none


def json_object(row):
    """Return the SQL expression for the JSON of a course, from the columns of `row`."""
    return getattr(fn, OBJECT)(*(part for field in FIELDS for part in (SQL(f"'{field}'"), getattr(row, field))))


def json_array(table, columns, total):
    """Return the query for a total, and the JSON of the rows of a table, or of a subquery in its order."""
    array = Case(fn.COUNT(SQL("*")), [(SQL("0"), SQL("'[]'"))], getattr(fn, ARRAY)(json_object(columns)))
    return peewee.Select([table], [total, array.cast(TYPE)]).bind(database)


def make_pattern(q):
    """Return the operator, and the pattern for it, that finds `q` in any case and takes each character as it is.

    The databases differ in the cases they know. So where LIKE, or PostgreSQL's ILIKE, is not enough, each character is
    looked for in each of its cases: with a regular expression, or with SQLite's GLOB, which Peewee calls LIKE there.
    """
    if q.isascii() and not isinstance(database, peewee.MySQLDatabase):  # where LIKE goes by our collation
        return peewee.OP.ILIKE, "%" + re.sub(r"([!%_])", r"!\1", q) + "%"  # ! is what escapes
    cases = ("".join({c, *(case for case in (c.lower(), c.upper()) if len(case) == 1)}) for c in q)
    if isinstance(database, peewee.SqliteDatabase):
        return peewee.OP.LIKE, "*" + "".join(f"[{c}]" if len(c) > 1 or c in "*?[" else c for c in cases) + "*"
    return REGEXP, "".join(f"[{c}]" if len(c) > 1 else re.escape(c) for c in cases)


@functools.cache
def page_query(sort, like, by_instructor, after, is_part):
    """Return the SQL for a page of this kind, and the names of its values in their order; made once for each kind."""
    value = functools.partial(peewee.Value, converter=False)
    column, descending = getattr(Course, sort.lstrip("-")), sort.startswith("-")
    rows = Course.select()
    if like:
        pattern = NodeList((value("q"), SQL("ESCAPE '!'"))) if like == peewee.OP.ILIKE else value("q")
        fields = (Expression(field, like, pattern) for field in (Course.code, Course.name, Course.instructor))
        rows = rows.where(functools.reduce(operator.or_, fields))
    if by_instructor:
        rows = rows.where(Course.instructor == value("instructor"))
    total = rows.select(fn.COUNT(SQL("*")))
    if after:
        ours, theirs = peewee.Tuple(column, Course.id), peewee.Tuple(value("value"), value("id"))
        if column is Course.id:
            ours, theirs = column, value("id")
        rows = rows.where(ours < theirs if descending else ours > theirs)
    order = [key.desc() if descending else key for key in (column, Course.id)]
    rows = rows.order_by(*order).limit(value("limit")).offset(value("offset")).alias("page")
    return json_array(rows, rows.c, total if is_part else fn.COUNT(SQL("*"))).sql()


# The text of each query, made once; a request only fills in the values.
SAME = [getattr(Course, field) == value for field, value in zip(FIELDS, (0, "", "", ""), strict=True)]
NEW_VALUES = {field: fn.COALESCE("", field) for field in (Course.name, Course.instructor)}  # NULL leaves the old one
ADD_COURSE, _ = Course.insert(code="", name="", instructor="").sql()
UPDATE_COURSE, _ = Course.update(NEW_VALUES).where(Course.code == "").sql()
UPDATE_SAME, _ = Course.update(NEW_VALUES).where(*SAME).sql()
DELETE_COURSE, _ = Course.delete().where(Course.code == "").sql()
DELETE_SAME, _ = Course.delete().where(*SAME).sql()
ONE_COURSE, _ = Course.select(json_object(Course).cast(TYPE)).where(Course.code == "").sql()
ALL_COURSES = None
if isinstance(database, peewee.SqliteDatabase):
    # It reads a table in the order of its ids, which is quicker than a page of all courses.
    ALL_COURSES = json_array(Course, Course, fn.COUNT(SQL("*"))).sql()

# -- Courses in files --------------------------------------------------------------------------------------------------

split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


def check_row(row):
    """Return the code, the name and the instructor of a dict; raise TypeError or ValueError with what is wrong."""
    if not isinstance(row, dict):
        raise TypeError("a course must be an object")
    if None in row:
        raise ValueError("there are more fields than columns; put quotes around a field that has a comma")
    return Code(row.get("code", "")), Name(row.get("name", "")), Instructor(row.get("instructor", ""))


def read_csv(text, most=NO_LIMIT):
    """Return the rows of CSV (RFC 4180) as dicts, each with its "line" too.

    Raises ValueError for what is none, or has more rows than `most`.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), restval="", skipinitialspace=True, strict=True)
    try:
        if not {"code", "name", "instructor"} <= set(reader.fieldnames or ()):
            raise ValueError("the first line must name the columns code, name and instructor")
        rows = [row | {"line": reader.line_num} for row in itertools.islice(reader, most + 1)]
    except csv.Error as error:
        raise ValueError(f"line {reader.reader.line_num} is not CSV: {error}") from None
    if len(rows) > most:
        raise ValueError(f"there are more than {most} rows")
    return rows


def make_csv(courses, watch=iter):
    """Return a JSON array of courses as CSV that read_csv takes back, in bytes."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS[1:], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(msgspec.json.decode, watch(split_array(courses))))
    return file.getvalue().encode()


# -- Users -------------------------------------------------------------------------------------------------------------

# Argon2id with 19 MiB, two passes and one lane: OWASP's Password Storage Cheat Sheet.
HASHER = argon2.PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1)
NOBODYS_HASH = HASHER.hash(secrets.token_hex())  # checked for an unknown user, so that both answers take as long


class User(BaseModel):
    username = peewee.CharField(Username.limit, unique=True, collation=COLLATION)
    password = peewee.CharField(255)  # the Argon2 hash, with its salt and parameters

    class Meta:
        table_name = "users"

    def __str__(self):
        return self.username

    @classmethod
    def create_user(cls, username, password):
        """Add a user; raise ValueError for a bad field, peewee.IntegrityError where the name is taken."""
        cls.insert(username=Username(username), password=HASHER.hash(Password(password))).execute()

    @classmethod
    def change_password(cls, username, password):
        """Set a user's password; raise ValueError for a bad one."""
        cls.update(password=HASHER.hash(Password(password))).where(cls.username == username).execute()

    @classmethod
    def match_user(cls, username, password):
        """Return whether this is the user's password; hash it anew where HASHER's parameters have changed."""
        user = cls.get_or_none(cls.username == username)
        hashed = user.password if user else NOBODYS_HASH
        try:
            HASHER.verify(hashed, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False
        if user and HASHER.check_needs_rehash(hashed):  # and only then if it is still the hash that was checked
            cls.update(password=HASHER.hash(password)).where(cls.id == user.id, cls.password == hashed).execute()
        return user is not None

    @classmethod
    def get_all_users(cls):
        """Return every user, in the order they were added."""
        return list(cls.select().order_by(cls.id))


class SigningKey(BaseModel):
    """The key that signs tokens where SECRET_KEY is not set: row 1, made once."""

    value = peewee.CharField(64)

    class Meta:
        table_name = "signing_key"

    @classmethod
    def get_key(cls):
        """Return the key, 32 random bytes in hexadecimal; of two processes that make it at once, one wins."""
        if cls.get_or_none(id=1) is None:
            cls.insert(id=1, value=secrets.token_hex(32)).on_conflict_ignore().execute()
        return cls.get_by_id(1).value
