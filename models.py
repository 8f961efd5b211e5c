"""The catalogue's data: the database, courses, users, and every query. Nothing here depends on HTTP.

From a Python prompt, after `python seed.py`:

    >>> from models import Course, User
    >>> Course.add_course("CSE225", "Ada Lovelace", "Data structures")
    >>> Course.get_course("CSE225")
    {'id': 3, 'code': 'CSE225', 'name': 'Data structures', 'instructor': 'Ada Lovelace'}
    >>> User.match_user("faisal", "faisal")
    True
"""

import codecs
import contextlib
import csv
import functools
import getpass
import glob
import io
import itertools
import logging
import os
import pathlib
import random
import re
import secrets
import sys
import time
from types import SimpleNamespace
from typing import Annotated

import argon2
import msgspec
import peewee
from playhouse import db_url
from playhouse.migrations import Runner
from playhouse.pool import PooledDatabase, PooledMySQLDatabase, PooledPostgresqlDatabase

# -- The database and its dialects -------------------------------------------------------------------------------------


def read_setting(name, default, kind=str, rule=""):
    """Return a setting, from the environment or the file that NAME_FILE names, as a `kind`, a type that msgspec knows.

    Exits with one line that states the rule if the value is not of this kind.
    """
    text, path = os.environ.get(name), os.environ.get(f"{name}_FILE")
    if text and path:
        sys.exit(f"{name} and {name}_FILE are both set; unset one of them")
    try:
        if path:
            text = pathlib.Path(path).read_text("utf-8-sig").strip()
            if not text:
                sys.exit(f"{name}_FILE names {path}, which is empty")
        return msgspec.convert(text or default, kind, strict=False)
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{name}_FILE must name a file of UTF-8 text: {error}")
    except msgspec.ValidationError:
        sys.exit(f"{name} must be {rule}; see python course_api.py --help")


URL = Annotated[str, msgspec.Meta(pattern=r"^(sqlite:///.*|sqlite://|(postgres|postgresql|mysql|mariadb)://.*/.+)$")]
URL_RULE = "like sqlite:///courses.db, postgresql://user:password@host/name or mysql://user:password@host/name"
DATABASE_URL = read_setting("DATABASE_URL", "sqlite:///courses.db", URL, URL_RULE)
IN_MEMORY = DATABASE_URL in ("sqlite:///:memory:", "sqlite:///", "sqlite://")
MIGRATIONS = pathlib.Path(__file__).with_name("migrations")
BUSY_SECONDS = 5  # how long a write to SQLite waits for another one, and how long conflicts are retried
CONNECT_SECONDS = 1  # how long it may take to connect to a database server
log = logging.getLogger("course_api")


class ServerPool:
    """Adds a circuit breaker and a time limit for each statement to Peewee's pools of connections."""

    circuit_open_until = 0  # on the monotonic clock, in seconds
    statement_limit = ""  # SQL in front of each statement, set by limit_statements()

    def _connect(self):
        """Fail fast for a second after a failure: Peewee lets one thread connect at a time, and the others wait."""
        if time.monotonic() < self.circuit_open_until:
            raise peewee.OperationalError("could not connect a moment ago")
        try:
            return super()._connect()
        except Exception:
            self.circuit_open_until = time.monotonic() + CONNECT_SECONDS
            raise

    def execute_sql(self, sql, params=None):
        return super().execute_sql(self.statement_limit + sql, params)


class PostgreSQL(ServerPool, PooledPostgresqlDatabase):
    pass


class MariaDB(ServerPool, PooledMySQLDatabase):
    pass


SQLITE = {
    "timeout": BUSY_SECONDS,
    "pragmas": {
        "journal_mode": "wal",
        "synchronous": "full",  # WAL alone can lose an acknowledged write in a power cut (sqlite.org/pragma.html)
        "foreign_keys": "on",
        "cache_size": -8000,  # KiB; a page out of 100,000 courses takes half as long as with 2000 (measured)
    },
}
POOL = {"max_connections": 0, "stale_timeout": 300, "connect_timeout": CONNECT_SECONDS}  # one for each thread at most
FOUND_ROWS = 2  # in MariaDB, an UPDATE that changes nothing counts its rows too
LISTS = "group_concat_max_len = 1073741824"  # bytes; without it MariaDB's JSON_ARRAYAGG gives NULL for a long list
UPSERT = "ON CONFLICT (code) DO UPDATE SET name = excluded.name, instructor = excluded.instructor"
SQLITE_OUTAGE = "is locked|is full|unable to open|disk I/O|readonly database|is malformed|not a database"
MARIADB_OUTAGE = r"^\((2\d{3}|1040|1053|1129|1130|1927|1205|1213|1969|1021|1041|1114|1290|1836)\b|max_allowed_packet"
DIALECTS = {  # what differs between SQLite, PostgreSQL and MariaDB
    "database": (peewee.SqliteDatabase, PostgreSQL, MariaDB),
    # Options of every connection, first those that DATABASE_URL can change; tcp_user_timeout is in milliseconds.
    "options": (SQLITE, POOL | {"tcp_user_timeout": 1500}, POOL | {"init_command": f"SET {LISTS}"}),
    "fixed_options": (
        {},
        {"client_encoding": "UTF8", "encoding": None},
        {"charset": "utf8mb4", "client_flag": FOUND_ROWS},
    ),
    # In front of a request's statement, to limit its time; MySQL, which cannot limit it so, skips /*M! */.
    "statement_limit": (
        "",
        "SET LOCAL statement_timeout = 1500; ",
        f"/*M! SET STATEMENT max_statement_time = 1.5, {LISTS} FOR */ ",
    ),
    "json_object": ("json_object", "json_build_object", "JSON_OBJECT"),
    "json_array": ("json_group_array", "json_agg", "JSON_ARRAYAGG"),
    "json_type": ("BLOB", "TEXT", "CHAR"),  # SQLite's blobs are copied less often than its text
    "encode": (bytes, str.encode, str.encode),  # turns JSON into bytes
    "like": ("LIKE", "ILIKE", ""),  # finds ASCII text in any case, where such an operator exists
    "match": ("GLOB", "~", "REGEXP"),  # matches a pattern
    "any_text": ("*", "", ""),  # the wildcard at both ends of such a pattern
    "escape": (glob.escape, re.escape, re.escape),  # escapes a character in such a pattern
    "reads_by_id": (True, False, False),  # whether a full scan returns rows in the order of their ids
    "upsert": (UPSERT, UPSERT, "ON DUPLICATE KEY UPDATE name = VALUES(name), instructor = VALUES(instructor)"),
    "collation": (None, '"C"', "utf8mb4_nopad_bin"),  # compares text by code points, as SQLite does anyway
    "begin": (["IMMEDIATE"], [], []),  # of a transaction that will write
    # Waits until no other process migrates; MariaDB's lock is held until the connection closes.
    "migration_lock": (
        "SELECT 1",
        "SELECT pg_advisory_xact_lock(5000)",
        "SELECT GET_LOCK(CONCAT(DATABASE(), ' schema'), 3600)",
    ),
    "for_update": ("", "FOR UPDATE", "FOR UPDATE"),  # locks what is read; SQLite's transaction has locked everything
    "scrub": ("VACUUM", "VACUUM FULL users", "OPTIMIZE TABLE users"),  # removes deleted text from the files
    # Matches the errors of a database that is away, locked or full; all OperationalErrors of PostgreSQL are such.
    "outage": (SQLITE_OUTAGE, "", MARIADB_OUTAGE),
}
SCHEMES = {"sqlite": 0, "postgres": 1, "postgresql": 1, "mysql": 2, "mariadb": 2}
SCHEME = DATABASE_URL.partition(":")[0]
dialect = SimpleNamespace(**{name: values[SCHEMES[SCHEME]] for name, values in DIALECTS.items()})
try:
    url_options = db_url.parse(DATABASE_URL.replace("#", "%23"), unquote_password=True, unquote_user=True)
except ValueError as error:
    sys.exit(f"DATABASE_URL must be {URL_RULE}: {error}")
DATABASE_NAME = re.sub(r"//.*@", "//", DATABASE_URL).partition("?")[0]  # safe to show: no user, no password
if SCHEME == "sqlite" and not IN_MEMORY:
    url_options["database"] = DATABASE_URL.removeprefix("sqlite:///").partition("?")[0]  # to the letter, with any "#"
    DATABASE_NAME = f"sqlite:///{os.path.abspath(url_options['database'])}"
if IN_MEMORY:  # ":memory:" is one database per connection; this one is shared by all threads
    url_options = {"database": "file:/courses?vfs=memdb", "uri": True}
database = dialect.database(**dialect.options | url_options | dialect.fixed_options)
POOLED = isinstance(database, PooledDatabase)
READS_NEVER_WAIT = not POOLED and not IN_MEMORY  # thanks to WAL, which a database in memory does not have

# The errors of a deadlock or a serialization failure: PostgreSQL's SQLSTATEs, MariaDB's numbers, SQLite's messages.
CONFLICTS = {"40001", "40P01", 1020, 1213, "database is locked", "database table is locked"}


def retry_conflicts(operation):
    """Decorate one statement or transaction so that it is retried, for BUSY_SECONDS, when a conflict undoes it."""

    @functools.wraps(operation)
    def wrapper(*args, **kwargs):
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return operation(*args, **kwargs)
            except peewee.OperationalError as error:
                codes = {getattr(getattr(error, "orig", None), "pgcode", None), *error.args}
                if not codes & CONFLICTS or time.monotonic() > deadline or database.in_transaction():
                    raise
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 (not a secret: so that the same two do not meet again)

    return wrapper


def is_outage(error):
    """Return whether an exception means that the database is away, locked or full, not that our SQL is wrong."""
    kinds = (peewee.OperationalError, peewee.InterfaceError, peewee.DatabaseError)
    return type(error) in kinds and re.search(dialect.outage, str(error)) is not None


@retry_conflicts
def init_db(target=database):
    """Bring the schema up to date, in one transaction where the database supports that; other processes wait.

    Raises peewee.DatabaseError if a newer version has created the schema.
    """
    runner = Runner(target, MIGRATIONS)
    steps = runner.status()
    newer = [step.name for step in steps if not step.path]
    if newer:
        raise peewee.DatabaseError(f"created by a newer version ({newer[-1]}); upgrade, or restore a backup")
    if not all(step.applied for step in steps):
        with target.atomic(*dialect.begin):
            target.execute_sql(dialect.migration_lock)
            applied = runner.up()
        if applied:  # and not by another process
            target.execute_sql(dialect.scrub)
            log.info("brought the schema up to date: %s", ", ".join(applied))
    if POOLED:
        database.manual_close()  # MariaDB's lock ends with the connection


@contextlib.contextmanager
def exit_if_unusable():
    """Exit with one line if the database cannot be used in this block."""
    try:
        yield
    except (peewee.PeeweeException, TypeError) as error:  # TypeError: the driver does not know an option
        hint, folder = "check DATABASE_URL", os.path.dirname(os.path.abspath(database.database))
        if isinstance(error, peewee.ImproperlyConfigured):
            hint = "install the drivers: pip install -r requirements-servers.txt"
        elif not POOLED and not os.access(folder, os.W_OK):
            hint = f"user {getattr(os, 'getuid', getpass.getuser)()} cannot write to the folder {folder}"
        sys.exit(f"cannot use the database {DATABASE_NAME}: {' '.join(str(error).split())}; {hint}")


def limit_statements():
    """Limit the time of every statement from now on, unless DATABASE_URL or PGOPTIONS does."""
    if "statement_time" not in DATABASE_URL + os.environ.get("PGOPTIONS", ""):
        database.statement_limit = dialect.statement_limit


# -- Field rules -------------------------------------------------------------------------------------------------------

CONTROL = r"\x00-\x1f\x7f-\x9f\ud800-\udfff"  # for brackets; includes surrogates, which no database can store
TEXT = rf"[^{CONTROL}]{{1,120}}"
RULES = {  # the pattern of each field, and its rule in words
    # Clients resolve "/", "." and ".." in a path themselves (RFC 3986 §5.2.4).
    "code": (rf"(?!\.+$)[^/{CONTROL}]{{1,20}}", "1 to 20 characters, not only dots, with no / or control characters"),
    "name": (TEXT, "1 to 120 characters, with no control characters"),
    "instructor": (TEXT.replace("1,", "0,"), "0 to 120 characters, with no control characters"),
    "username": (rf"[^{CONTROL}]{{1,80}}", "1 to 80 characters, with no control characters"),
    "password": (r"[^\ud800-\udfff]{1,1024}", "1 to 1024 characters, with no surrogates"),
}
CODE_MISSING = "course code must be provided"
NAMES_MISSING = "Course name and instructor's name must be provided"


class ValidationError(ValueError):
    """Input that breaks a rule; the message says which."""


def clean(field, value):
    """Return a field's value, trimmed unless it is a password; raise ValidationError if it breaks the field's rule."""
    if not isinstance(value, str):
        raise ValidationError(f"{field} must be a string")
    text = value if field == "password" else value.strip()
    if field == "code" and not text:
        raise ValidationError(CODE_MISSING)
    pattern, rule = RULES[field]
    if not re.fullmatch(pattern, text):
        raise ValidationError(f"{field} must be {rule}")
    return text


# -- Courses -----------------------------------------------------------------------------------------------------------

FIELDS = ("code", "name", "instructor")
BATCH = 1000  # courses in one INSERT
NO_LIMIT = 2**62  # rows


def sql(text):
    """Return SQL, written with %s, with the database's own placeholders."""
    return text.replace("%s", database.param)


# The queries that requests run, except logins. The database builds the JSON.
COURSE_JSON = f"{dialect.json_object}('id', id, 'code', code, 'name', name, 'instructor', instructor)"
GET_COURSE = sql(f"SELECT CAST({COURSE_JSON} AS {dialect.json_type}) FROM courses WHERE code = %s")
# A write checks its user's role in the same statement, so that the role cannot change in between. NULL, no user, may.
MAY_WRITE = "(%s IS NULL OR EXISTS (SELECT 1 FROM users WHERE username = %s AND NOT read_only))"
ADD_COURSE = sql(f"INSERT INTO courses (code, name, instructor) SELECT %s, %s, %s WHERE {MAY_WRITE}")
SET_FIELDS = "name = COALESCE(%s, name), instructor = COALESCE(%s, instructor)"
UPDATE_COURSE = sql(f"UPDATE courses SET {SET_FIELDS} WHERE {MAY_WRITE} AND ")
DELETE_COURSE = sql(f"DELETE FROM courses WHERE {MAY_WRITE} AND ")
HAS_CODE, IS_SAME = sql("code = %s"), sql("id = %s AND code = %s AND name = %s AND instructor = %s")
LIST_JSON = f"CASE COUNT(*) WHEN 0 THEN '[]' ELSE {dialect.json_array}({COURSE_JSON}) END"
SELECT_ALL = f"SELECT COUNT(*), CAST({LIST_JSON} AS {dialect.json_type}) FROM courses"
SELECT_PAGE = f"""
    SELECT {{total}}, CAST({LIST_JSON} AS {dialect.json_type})
    FROM (SELECT * FROM courses {{where}} ORDER BY {{order}} LIMIT %s OFFSET %s) AS page"""
split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode


class UploadError(ValidationError):
    """A refused upload: `rows` pairs each bad row's number with its error; `conflict` if all are taken codes."""

    def __init__(self, invalid, duplicates):
        self.rows, self.conflict = sorted(invalid + duplicates), not invalid
        were = "row was" if len(self.rows) == 1 else "rows were"
        super().__init__(f"nothing was stored; {len(self.rows)} {were} refused")


class Course(database.Model):
    code = peewee.CharField(20, unique=True, collation=dialect.collation)
    name = peewee.CharField(120, collation=dialect.collation)
    instructor = peewee.CharField(120, collation=dialect.collation)

    class Meta:
        table_name = "courses"

    @classmethod
    @retry_conflicts
    def add_course(cls, code, instructor, name, by=None):
        """Add a course; return False if the user `by` may not write.

        Raises ValidationError for a bad field, peewee.IntegrityError if the code is taken.
        """
        values = (clean("code", code), clean("name", name), clean("instructor", instructor), by, by)
        return database.execute_sql(ADD_COURSE, values).rowcount > 0

    @classmethod
    def add_courses(cls, rows, update=False, unit="row", watch=iter, dry_run=False):
        """Add courses, all or none; return how many were added, updated and unchanged.

        `rows` maps each row's number, which counts a `unit`, to its fields. `update` changes courses that exist.
        `dry_run` stores nothing in the end. `watch` passes on the courses to store; it may show progress, and what it
        raises undoes everything. Raises UploadError, which names each bad row.
        """
        courses, invalid, duplicates = {}, [], []  # courses: the row's number and the fields of each code
        for number, row in rows.items():
            try:
                code, *others = check_row(row)
                first, *_ = courses.setdefault(code, (number, code, *others))
                if first != number:
                    duplicates.append((number, f"Course code {code} repeats {unit} {first}"))
            except ValidationError as error:
                invalid.append((number, str(error)))
        for _attempt in range(3):  # a code that is taken may be free again by the time it is looked up
            if not (invalid or duplicates):
                with contextlib.suppress(peewee.IntegrityError):
                    return cls.store([fields for _, *fields in courses.values()], update, watch, dry_run)
            for codes in [] if update else peewee.chunked(courses, BATCH):
                taken = cls.find(codes)
                duplicates += [(courses[code][0], f"Course code {code} is in the courses already") for code in taken]
            if invalid or duplicates:
                break
        raise UploadError(invalid, duplicates)

    @classmethod
    def find(cls, codes):
        """Return the fields of the courses that exist, by code; lock them until the transaction ends."""
        condition = f"code IN ({', '.join(['%s'] * len(codes))})"
        query = sql(f"SELECT code, name, instructor FROM courses WHERE {condition} {dialect.for_update}")
        return {code: [code, *others] for code, *others in database.execute_sql(query, codes)}

    @classmethod
    @retry_conflicts
    def store(cls, courses, update, watch, dry_run):
        """Store courses, each a list of its fields; raise peewee.IntegrityError for a taken code unless `update`."""
        created = stored = 0
        on_conflict = dialect.upsert if update else ""
        with database.atomic(*dialect.begin) as transaction:
            for batch in peewee.chunked(watch(courses), BATCH):
                old = cls.find([code for code, *_ in batch]) if update else {}
                changes = [course for course in batch if old.get(course[0]) != course]
                if changes:
                    values = ", ".join(["(%s, %s, %s)"] * len(changes))
                    insert = sql(f"INSERT INTO courses (code, name, instructor) VALUES {values} {on_conflict}")
                    database.execute_sql(insert, list(itertools.chain(*changes)))
                created, stored = created + len(batch) - len(old), stored + len(changes)
            if dry_run:
                transaction.rollback()
        return created, stored - created, len(courses) - stored

    @classmethod
    def get_all_courses(cls):
        """Return every course as a dict, in the order they were added."""
        _, courses, _ = cls.get_page()
        return msgspec.json.decode(courses)

    @classmethod
    def get_course(cls, code):
        """Return a course as a dict, or None if there is none with this code."""
        return msgspec.json.decode(cls.get_json(code) or b"null")

    @classmethod
    @retry_conflicts
    def update_course(cls, code, instructor=None, name=None, old=None, by=None):
        """Change the given fields of a course.

        Returns False if it does not exist, no longer equals `old`, a dict, or the user `by` may not write. Raises
        ValidationError for a bad field.
        """
        changes = {"name": name, "instructor": instructor}
        values = [None if value is None else clean(field, value) for field, value in changes.items()]
        condition, key = (IS_SAME, old.values()) if old else (HAS_CODE, [code])
        return database.execute_sql(UPDATE_COURSE + condition, (*values, by, by, *key)).rowcount > 0

    @classmethod
    @retry_conflicts
    def delete_course(cls, code, old=None, by=None):
        """Delete a course; return False for the same reasons as update_course."""
        condition, key = (IS_SAME, old.values()) if old else (HAS_CODE, [code])
        return database.execute_sql(DELETE_COURSE + condition, (by, by, *key)).rowcount > 0

    @classmethod
    def get_json(cls, code):
        """Return a course as JSON, in bytes, or None if there is none with this code."""
        row = database.execute_sql(GET_COURSE, (code,)).fetchone()
        return dialect.encode(row[0]) if row else None

    @classmethod
    def get_page(cls, q="", instructor="", sort="id", limit=0, offset=0, after=""):
        """Return how many courses match, a page of them as a JSON array in bytes, and a cursor for the next page.

        Courses match that contain `q` in any field, in any case, and have this instructor. They are sorted by the field
        `sort`, then by id; "-" in front means descending. The page has up to `limit` courses (0: all). It starts after
        `offset` courses, or at the cursor `after` ("sort:id:value"), and then nothing is counted: the number is None.
        The cursor is empty on the last page.
        """
        if dialect.reads_by_id and (q, instructor, sort, limit, offset, after) == ("", "", "id", 0, 0, ""):
            total, courses = database.execute_sql(SELECT_ALL).fetchone()
            return total, dialect.encode(courses), ""
        column, descending = sort.removeprefix("-"), sort.startswith("-")
        conditions, values = make_conditions(q, instructor)
        if after:
            _, number, value = after.split(":", 2)
            operator = "<" if descending else ">"
            conditions.append(f"id {operator} %s" if column == "id" else f"({column}, id) {operator} (%s, %s)")
            values += [int(number)] if column == "id" else [value, int(number)]
        where = "WHERE " + " AND ".join(conditions) if conditions else ""  # SQLite counts faster without a condition
        total, values = ("NULL", values) if after else (f"(SELECT COUNT(*) FROM courses {where})", values * 2)
        order = f"{column} DESC, id DESC" if descending else f"{column}, id"
        query = sql(SELECT_PAGE.format(total=total, where=where, order=order))
        values += [limit + 1 if limit else NO_LIMIT, 0 if after else offset]
        total, courses = database.execute_sql(query, values).fetchone()
        if courses is None:  # MariaDB's way to say so
            raise peewee.OperationalError("the list is longer than max_allowed_packet; raise that, or ask for pages")
        courses = dialect.encode(courses)
        rows = split_array(courses) if limit else []
        if len(rows) <= limit:
            return total, courses, ""
        last = msgspec.json.decode(rows[limit - 1])
        return total, b"[%b]" % b",".join(rows[:limit]), f"{sort}:{last['id']}:{last[column]}"


def make_conditions(q, instructor):
    """Return SQL conditions for the courses with `q` in any field and this instructor, and their values.

    The databases know different cases. So unless LIKE will do, each letter is searched for in all of its cases.
    """
    conditions, values = [], []
    if q.isascii() and dialect.like:
        search, pattern = f"{dialect.like} %s ESCAPE '!'", "%" + re.sub(r"([!%_])", r"!\1", q) + "%"
    else:
        cases = ("".join({c, *(case for case in (c.lower(), c.upper()) if len(case) == 1)}) for c in q)
        letters = (f"[{case}]" if len(case) > 1 else dialect.escape(case) for case in cases)
        search, pattern = f"{dialect.match} %s", dialect.any_text + "".join(letters) + dialect.any_text
    if q:
        conditions.append("(" + " OR ".join(f"{field} {search}" for field in FIELDS) + ")")
        values += [pattern] * len(FIELDS)
    if instructor:
        conditions.append("instructor = %s")
        values.append(instructor)
    return conditions, values


# -- Courses in files --------------------------------------------------------------------------------------------------

# Python's encodings of text that no spreadsheet writes: some decode to surrogates, some take quadratic time.
NO_CHARSETS = {"utf-7", "punycode", "idna", "unicode-escape", "raw-unicode-escape"}
BYTE_ORDER_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def check_row(row):
    """Return a row's code, name and instructor; raise ValidationError if it is not a course."""
    if not isinstance(row, dict):
        raise ValidationError("a course must be an object")
    if None in row:
        raise ValidationError("there are more cells than columns; put quotes around a cell that has a separator")
    code = clean("code", row.get("code", ""))
    if not {"name", "instructor"} <= row.keys():
        raise ValidationError(NAMES_MISSING)
    return code, clean("name", row["name"]), clean("instructor", row["instructor"])


def decode_text(data, encoding=""):
    """Return the text of a file's bytes, decoded by its byte order mark, else as `encoding` says, else as UTF-8.

    Raises ValidationError with the line that cannot be decoded.
    """
    marked = [name for mark, name in BYTE_ORDER_MARKS.items() if data.startswith(mark)]
    encoding = marked[0] if marked else encoding or "utf-8"
    try:
        if codecs.lookup(encoding).name in NO_CHARSETS:
            raise LookupError
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len(data[: error.start + 1].splitlines())
        raise ValidationError(
            f'line {line} is not {encoding} text; save the file as "CSV UTF-8", or give its encoding: with --encoding '
            "windows-1252 to seed.py, with Content-Type: text/csv; charset=windows-1252 to the API"
        ) from None
    except (LookupError, ValueError):
        raise ValidationError(f"there is no encoding {encoding}; use one like windows-1252") from None


def read_csv(text, max_rows=NO_LIMIT):
    """Return the rows of CSV text (RFC 4180): a dict from the line that each begins on to its fields.

    Commas, semicolons or tabs separate the cells, whichever finds the columns in the first line, or what a line like
    Excel's "sep=;" declares. Blank rows are skipped. Raises ValidationError, with the line, for text that is not CSV.
    """
    rows, line = {}, 1
    declared = re.match(r"sep=(\t|[^\w\s\"])\s*?(\r\n|\r|\n)", text)
    try:
        delimiter, names = read_header(text[declared.end() :], declared[1]) if declared else read_header(text, ",;\t")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        for _ in range(2 if declared else 1):
            next(reader)
        line = reader.line_num + 1
        columns = [(field, names.index(field)) for field in FIELDS]
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows[line] = {field: cells[column] if column < len(cells) else "" for field, column in columns}
                if any(cell.strip() for cell in cells[len(names) :]):
                    rows[line][None] = "too many cells"
            line = reader.line_num + 1
            if len(rows) > max_rows:
                raise ValidationError(f"there are more than {max_rows} rows; send them in several requests")
    except csv.Error as error:
        raise ValidationError(f"line {line} is not CSV, check its quotes: {error}") from None
    return rows


def read_header(text, delimiters):
    """Return the delimiter that finds the most required columns in the first record, and the names of all columns.

    Raises ValidationError if a required column is missing or named twice.
    """
    headers = {}
    for delimiter in delimiters:
        start = io.StringIO(text[:100_000], newline="")
        record = next(csv.reader(start, delimiter=delimiter, skipinitialspace=True), [])
        headers[delimiter] = [cell.strip().lower() for cell in record]
    best = max(headers, key=lambda delimiter: len({*FIELDS} & {*headers[delimiter]}))
    for field in FIELDS:
        if headers[best].count(field) > 1:
            raise ValidationError(f"the column {field} is named twice; remove one of them")
        if field not in headers[best]:
            found = " ".join(text[:200].splitlines()[:1]).strip() or "(blank)"
            raise ValidationError(f"the first line must name the columns code, name and instructor, but is: {found}")
    return best, headers[best]


def make_csv(courses, watch=iter):
    """Return a JSON array of courses as CSV that read_csv takes back, in bytes."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(map(msgspec.json.decode, watch(split_array(courses))))
    return file.getvalue().encode()


# -- Users and the signing key -----------------------------------------------------------------------------------------

# Argon2id with 19 MiB, two passes and one lane: OWASP's Password Storage Cheat Sheet.
HASHER = argon2.PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1)
UNKNOWN_USER = HASHER.hash(secrets.token_hex())  # for an unknown user, so that both responses take equally long


def hash_password(password):
    """Return the Argon2 hash of a password; raise ValidationError for a bad one."""
    return HASHER.hash(clean("password", password))


class User(database.Model):
    username = peewee.CharField(80, unique=True, collation=dialect.collation)
    password = peewee.CharField(255)  # the Argon2 hash, with its salt and parameters
    read_only = peewee.BooleanField(default=False)

    class Meta:
        table_name = "users"

    @classmethod
    @retry_conflicts
    def create_user(cls, username, password, read_only=False):
        """Add a user; raise ValidationError for a bad field, peewee.IntegrityError if the name is taken."""
        cls.create(username=clean("username", username), password=hash_password(password), read_only=read_only)

    @classmethod
    @retry_conflicts
    def match_user(cls, username, password):
        """Return whether this is the user's password; rehash it if HASHER's parameters have changed."""
        user = cls.get_or_none(cls.username == username)
        hashed = user.password if user else UNKNOWN_USER
        with contextlib.suppress(argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            HASHER.verify(hashed, password)
            if user and HASHER.check_needs_rehash(hashed):  # unless it has been changed since
                cls.update(password=HASHER.hash(password)).where(cls.id == user.id, cls.password == hashed).execute()
            return user is not None
        return False

    @classmethod
    def lock_user(cls, username):
        """Return a user, locked until the transaction ends, or None if there is no user with this name."""
        return cls.select().where(cls.username == username).for_update(dialect.for_update).first()

    @classmethod
    def get_all_users(cls):
        """Return every user, in the order they were added."""
        return list(cls.select().order_by(cls.id))


class SigningKey(database.Model):
    """The key that signs tokens unless SECRET_KEY is set: row 1, made once."""

    value = peewee.CharField(64)

    class Meta:
        table_name = "signing_key"

    @classmethod
    @retry_conflicts
    def get_key(cls):
        """Return the key, 32 random bytes in hexadecimal; of two processes that make one, the first wins."""
        key, _ = cls.get_or_create(id=1, defaults={"value": secrets.token_hex(32)})
        return key.value
