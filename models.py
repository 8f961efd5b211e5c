"""The catalogue's data: the database, courses, users, and every query. It knows no HTTP.

From a Python prompt, after `python seed.py`:

    >>> from models import Course, User
    >>> Course.add_course("CSE225", "Ada Lovelace", "Data structures")
    >>> Course.get_course("CSE225")
    {'id': 3, 'code': 'CSE225', 'name': 'Data structures', 'instructor': 'Ada Lovelace'}
    >>> User.match_user("faisal", "faisal")
    True
"""

import json
import os
import random
import re
import secrets
import sqlite3
import sys
import time

import argon2
import peewee
from peewee import fn
from playhouse import db_url

# -- The database ------------------------------------------------------------------------------------------------------

DATABASE_URL = os.environ.get("DATABASE_URL") or "sqlite:///courses.db"
DATABASE_NAME = re.sub(r"//.*@", "//", DATABASE_URL).partition("?")[0]  # what may be shown: no user, no password
IN_MEMORY = DATABASE_URL in ("sqlite:///:memory:", "sqlite:///", "sqlite://")
BUSY_SECONDS = 5  # how long a write waits for another one to end
OPTIONS = {}
if DATABASE_URL.startswith("sqlite"):
    # FULL: an acknowledged write survives a power cut, which WAL alone does not promise (sqlite.org/pragma.html).
    pragmas = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": "on"}
    OPTIONS = {"timeout": BUSY_SECONDS, "pragmas": pragmas}
elif DATABASE_URL.startswith("mysql"):
    # JSON_ARRAYAGG cuts what is longer, without an error; max_allowed_packet stays a limit. An update that changes
    # nothing counts as one only with FOUND_ROWS, 2.
    OPTIONS = {"init_command": "SET SESSION group_concat_max_len = 4294967295", "client_flag": 2}
if IN_MEMORY:
    # SQLite's ":memory:" is one database per connection. This one is for all threads, and lives as long as `keeper`.
    OPTIONS |= {"database": "file:/courses?vfs=memdb", "uri": True}
    keeper = sqlite3.connect(OPTIONS["database"], uri=True)

try:
    database = db_url.connect(DATABASE_URL, unquote_user=True, unquote_password=True, **OPTIONS)
except (RuntimeError, ValueError, peewee.PeeweeException):
    sys.exit(f"DATABASE_URL: {DATABASE_NAME} is not like sqlite:///courses.db or postgresql://user@host/name")


def prepare():
    """Make the tables that are missing; stop the program with one line where the database cannot be used.

    Two processes that start at once on a new file can meet "database is locked" whatever the timeout: SQLite does
    not wait for the switch to WAL. So this is tried again, a few times.
    """
    for attempts_left in range(9, -1, -1):
        try:
            with database.connection_context():
                database.create_tables([Course, User, SigningKey])
            return
        except (peewee.PeeweeException, TypeError) as error:
            if "locked" not in str(error) or not attempts_left:
                sys.exit(f"the database {DATABASE_NAME} cannot be used: {error}; check DATABASE_URL")
            time.sleep(random.uniform(0.01, 0.1))  # noqa: S311 (jitter, not a secret)


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


class Course(BaseModel):
    code = peewee.CharField(Code.limit, unique=True)
    name = peewee.CharField(Name.limit)
    instructor = peewee.CharField(Instructor.limit)

    class Meta:
        table_name = "courses"

    @classmethod
    def add_course(cls, code, instructor, name):
        """Add a course; raise ValueError for a bad field, peewee.IntegrityError where the code is taken."""
        database.execute_sql(ADD_COURSE, (Code(code), Name(name), Instructor(instructor)))

    @classmethod
    def get_all_courses(cls):
        """Return every course as a dict, in the order they were added."""
        return json.loads(cls.get_all_json())["courses"]

    @classmethod
    def get_course(cls, code):
        """Return a course as a dict, or None where there is none of this code."""
        return json.loads(cls.get_json(code) or "null")

    @classmethod
    def update_course(cls, code, instructor=None, name=None):
        """Change what is given of a course; return whether there is one of this code."""
        name = None if name is None else Name(name)
        instructor = None if instructor is None else Instructor(instructor)
        return database.execute_sql(UPDATE_COURSE, (name, instructor, code)).rowcount > 0

    @classmethod
    def delete_course(cls, code):
        """Delete a course; return whether there was one of this code."""
        return database.execute_sql(DELETE_COURSE, (code,)).rowcount > 0

    @classmethod
    def get_json(cls, code):
        """Return a course as JSON, in bytes, or None."""
        row = database.execute_sql(ONE_COURSE, (code,)).fetchone()
        return row and ENCODE(row[0])

    @classmethod
    def get_all_json(cls):
        """Return {"courses": [every course]} as JSON, in bytes, in the order they were added."""
        return b'{"courses": %b}' % ENCODE(database.execute_sql(*ALL_COURSES).fetchone()[0])


# The database writes the JSON itself, each in its dialect: the functions for an object and an array, the type of what
# they give, and what makes bytes of it (SQLite's blobs are bytes, and copied less often).
if isinstance(database, peewee.SqliteDatabase):
    OBJECT, ARRAY, TYPE, ENCODE = "json_object", "json_group_array", "blob", bytes
elif isinstance(database, peewee.PostgresqlDatabase):
    OBJECT, ARRAY, TYPE, ENCODE = "json_build_object", "json_agg", "text", str.encode
else:
    OBJECT, ARRAY, TYPE, ENCODE = "JSON_OBJECT", "JSON_ARRAYAGG", "char", str.encode


def json_object(row):
    """Return the SQL expression for the JSON of a course, from the columns of `row`."""
    members = [(peewee.SQL(f"'{field}'"), getattr(row, field)) for field in ("id", "code", "name", "instructor")]
    return getattr(fn, OBJECT)(*(part for member in members for part in member))


def json_array(table, columns):
    """Return the query for the JSON of the rows of a table, or of a subquery in its order."""
    array = getattr(fn, ARRAY)(json_object(columns)).cast(TYPE)
    return peewee.Select([table], [fn.COALESCE(array, "[]")]).bind(database)


# The text of each query, made once; a request only fills in the values.
ADD_COURSE, _ = Course.insert(code="", name="", instructor="").sql()
NEW_VALUES = {field: fn.COALESCE("", field) for field in (Course.name, Course.instructor)}  # NULL leaves the old one
UPDATE_COURSE, _ = Course.update(NEW_VALUES).where(Course.code == "").sql()
DELETE_COURSE, _ = Course.delete().where(Course.code == "").sql()
ONE_COURSE, _ = Course.select(json_object(Course).cast(TYPE)).where(Course.code == "").sql()
if isinstance(database, peewee.SqliteDatabase):
    ALL_COURSES = json_array(Course, Course).sql()  # SQLite reads a table in the order of its ids
else:
    rows = Course.select().order_by(Course.id).limit(database.limit_max).alias("rows")  # MariaDB sorts with limit only
    ALL_COURSES = json_array(rows, rows.c).sql()


# -- Users -------------------------------------------------------------------------------------------------------------

# Argon2id with 19 MiB, two passes and one lane: OWASP's Password Storage Cheat Sheet.
HASHER = argon2.PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1)
NOBODYS_HASH = HASHER.hash(secrets.token_hex())  # checked for an unknown user, so that both answers take as long


class User(BaseModel):
    username = peewee.CharField(Username.limit, unique=True)
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
