"""What a course and a user are, and every query. Nothing here depends on HTTP.

From a Python prompt, after `python seed.py`:

    >>> from models import Course, User
    >>> Course.add_course("CSE225", "Ada Lovelace", "Data structures")
    True
    >>> Course.get_course("CSE225")
    {'id': 3, 'code': 'CSE225', 'name': 'Data structures', 'instructor': 'Ada Lovelace'}
    >>> User.match_user("faisal", "faisal")
    True
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import re
import secrets
import time
from typing import NamedTuple

import argon2
import msgspec
import peewee

from database import db, retry_conflicts
from fields import Password, Text, ValidationError, WholeNumber, to_nfc

BATCH = 1000  # courses in one INSERT
NO_LIMIT = 2**62  # rows
ANY_NUMBER = WholeNumber(-(2**63), 2**63 - 1)  # that a database can store; another program may break a field's rule
split_array = msgspec.json.Decoder(list[msgspec.Raw]).decode

# -- Courses -----------------------------------------------------------------------------------------------------------


class Mode(enum.Enum):
    """How an upload treats the courses that exist."""

    ADD = enum.auto()  # a code that exists refuses the upload
    SKIP = enum.auto()  # a course that exists stays unchanged
    UPDATE = enum.auto()  # a course that exists is changed
    REPLACE = enum.auto()  # as UPDATE, and courses that are not in the upload are deleted


@dataclasses.dataclass
class Stored:
    """What an upload did to the courses, or would have done."""

    created: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    taken: list = dataclasses.field(default_factory=list)  # codes that were skipped
    changes: list | None = None  # if asked for: pairs of each course before and after, None if there is none

    def note(self, before, after):
        """Count a course, as a dict or None before and after."""
        kind = "created" if not before else "deleted" if not after else "updated" if before != after else "unchanged"
        setattr(self, kind, getattr(self, kind) + 1)
        if self.changes is not None and kind != "unchanged":
            self.changes.append((before, after))


class Course(db.Model):
    """A course. A field is declared here and added by a migration; everything else is made from this declaration."""

    code = Text(1, 20, key=True, label="course code")
    name = Text(1, 120, label="Course name")
    instructor = Text(0, 120, label="instructor's name", filter=True, separator="; ")

    class Meta:
        table_name = "courses"

    @classmethod
    def add_course(cls, code, instructor, name, by=None, **others):
        """Add a course; return False if the user `by` may not write.

        Raises ValidationError for a bad field, peewee.IntegrityError if the code is taken.
        """
        check_names(others)
        return cls.insert_course(clean_course({"code": code, "name": name, "instructor": instructor} | others), by)

    @classmethod
    def update_course(cls, code, instructor=None, name=None, old=None, by=None, **others):
        """Change the given fields of a course; return whether it was changed, as change_course does.

        Raises ValidationError for a bad field.
        """
        check_names(others)
        fields = {"instructor": instructor, "name": name} | others
        given = {field: value for field, value in fields.items() if value is not None}
        return cls.change_course(code, clean_fields(given), old, by)

    @classmethod
    @retry_conflicts
    def insert_course(cls, course, by=None):
        """Add a course that clean_course() returned; return False if the user `by` may not write.

        Raises peewee.IntegrityError if the code is taken.
        """
        values = [course[field] for field in FIELDS]
        may_write, writer = match_writer(by)
        return db.execute_sql(ADD_COURSE + may_write, (*values, *writer)).rowcount > 0

    @classmethod
    @retry_conflicts
    def change_course(cls, code, change, old=None, by=None):
        """Set the fields that clean_fields() returned; return whether there was such a course that `by` may change.

        Given `old`, a course as a dict, it must also be unchanged since.
        """
        may_write, writer = match_writer(by)
        is_it, key = match_course(code, old)
        values = [change.get(field) for field in CHANGEABLE]
        return db.execute_sql(f"{UPDATE_COURSE}{may_write} AND {is_it}", (*values, *writer, *key)).rowcount > 0

    @classmethod
    @retry_conflicts
    def delete_course(cls, code, old=None, by=None):
        """Delete a course; return whether there was such a course, as for change_course."""
        may_write, writer = match_writer(by)
        is_it, key = match_course(code, old)
        return db.execute_sql(f"{DELETE_COURSE}{may_write} AND {is_it}", (*writer, *key)).rowcount > 0

    @classmethod
    @retry_conflicts
    def write_and_read(cls, code, write, *arguments):
        """Call a function that writes a course; return what it has made of the course, as get_json does.

        No other client can change the course in between. Returns None if the function wrote nothing.
        """
        with db.write_transaction():
            return cls.get_json(code) if write(*arguments) else None

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
    def get_json(cls, code):
        """Return a course as JSON, in bytes, or None if there is none with this code."""
        row = db.execute_sql(GET_COURSE, (stored_code(code),)).fetchone()
        return db.to_bytes(row[0]) if row else None

    @classmethod
    def get_page(cls, q="", prefix="", sort="id", limit=0, offset=0, after=None, **filters):
        """Return how many courses match, a page of them as a JSON array in bytes, and the cursor of the next page.

        Courses match that contain `q` in any text, in any case, whose code begins with `prefix`, and whose fields equal
        the `filters`. They are sorted by the field `sort`, then by id; "-" in front means descending. The page has up
        to `limit` courses (0: all). It starts after `offset` courses, or at the Cursor `after`, and then nothing is
        counted: the number is None. The last page has no cursor: None.
        """
        if db.reads_by_id and not (q or prefix or sort != "id" or limit or offset or after or filters):
            total, courses = db.execute_sql(SELECT_ALL).fetchone()
            return total, db.to_bytes(courses), None
        column, descending = sort.removeprefix("-"), sort.startswith("-")
        conditions, values = search(q) if q else ([], [])
        if prefix:
            conditions.append("code >= %s AND code < %s")  # which all three databases find by the index
            values += [prefix, end_of_prefix(prefix)]
        conditions += [f"{field} = %s" for field in filters]
        values += filters.values()
        if after:
            operator = "<" if descending else ">"
            conditions.append(f"id {operator} %s" if column == "id" else f"({column}, id) {operator} (%s, %s)")
            values += [after.id] if column == "id" else [after.value, after.id]
        where = "WHERE " + " AND ".join(conditions) if conditions else ""  # SQLite counts faster without a condition
        total, values = ("NULL", values) if after else (f"(SELECT COUNT(*) FROM courses {where})", values * 2)
        order = f"{column} DESC, id DESC" if descending else f"{column}, id"
        query = sql(SELECT_PAGE.format(total=total, where=where, order=order))
        values += [limit + 1 if limit else NO_LIMIT, 0 if after else offset]
        total, courses = db.execute_sql(query, values).fetchone()
        if courses is None:  # MariaDB's way to say so
            raise peewee.OperationalError("the list is longer than max_allowed_packet; raise that, or ask for pages")
        courses = db.to_bytes(courses)
        rows = split_array(courses) if limit else []
        if len(rows) <= limit:
            return total, courses, None
        last = msgspec.json.decode(rows[limit - 1])
        return total, b"[%b]" % b",".join(rows[:limit]), Cursor(sort, last["id"], last[column])

    @classmethod
    def find_codes(cls, codes=None, limit=NO_LIMIT):
        """Return the codes that exist, the first `limit` in the order they were added; given codes, only those."""
        if codes is None:
            return [code for (code,) in cls.select(cls.code).order_by(cls.id).limit(limit).tuples().iterator()]
        batches = peewee.chunked(codes, BATCH)
        return [code for batch in batches for (code,) in cls.select(cls.code).where(cls.code.in_(batch)).tuples()]

    @classmethod
    @retry_conflicts
    def store_courses(
        cls,
        courses,
        mode=Mode.ADD,
        *,
        keep=(),
        old=None,
        by=None,
        dry_run=False,
        verbose=False,
        progress=iter,
        before_commit=lambda: None,
    ):
        """Store courses, clean dicts of the fields that are given, all or none; return the Stored.

        A new course gets the defaults of the other fields. Under Mode.ADD, a code that exists raises
        peewee.IntegrityError. Mode.REPLACE deletes no course whose code is in `keep`. Returns None if the user `by` may
        not write, or if the list is no longer `old`, which get_page() returned. `dry_run` stores nothing in the end;
        `verbose` lists the changes. `progress` passes on the courses. `before_commit` is called when only the commit is
        left.
        """
        stored = Stored(changes=[] if verbose else None)
        with db.write_transaction() as transaction:
            if mode in (Mode.SKIP, Mode.REPLACE):  # so that nobody else adds a course until the end
                db.execute_sql(db.table_lock.format("courses"))
            if old is not None and cls.get_page()[1] != old:
                return None
            for batch in peewee.chunked(progress(courses), BATCH):
                cls.store_batch(batch, mode, stored)
            if mode is Mode.REPLACE:
                cls.delete_others({*keep, *(course["code"] for course in courses)}, stored)
            if not lock_writer(by):
                transaction.rollback()
                return None
            if dry_run:
                transaction.rollback()
            before_commit()
        return stored

    @classmethod
    def store_batch(cls, courses, mode, stored):
        """Store courses in one statement, as store_courses does; note in `stored` what that did."""
        found = {} if mode is Mode.ADD else cls.lock_courses([course["code"] for course in courses])
        if mode is Mode.SKIP:
            stored.taken += found
            courses = [course for course in courses if course["code"] not in found]
        rows = [FILE_DEFAULTS | found.get(course["code"], {}) | course for course in courses]
        for row in rows:
            stored.note(found.get(row["code"]), row)
        changed = [row for row in rows if found.get(row["code"]) != row]
        if changed:
            values = [row[field] for row in changed for field in FIELDS]
            rows_sql = ", ".join([f"({VALUES})"] * len(changed))
            on_conflict = db.upsert("code", CHANGEABLE) if mode in (Mode.UPDATE, Mode.REPLACE) else ""
            db.execute_sql(sql(f"{INSERT} VALUES {rows_sql} {on_conflict}"), values)

    @classmethod
    def delete_others(cls, codes, stored):
        """Delete all courses but those with these codes; note in `stored` which."""
        others = [code for code in cls.find_codes() if code not in codes]
        for batch in peewee.chunked(others, BATCH):
            for course in cls.lock_courses(batch).values():
                stored.note(course, None)
            cls.delete().where(cls.code.in_(batch)).execute()

    @classmethod
    def lock_courses(cls, codes):
        """Return the courses that exist, by code, as dicts without ids, locked until the transaction ends."""
        query = sql(f"SELECT {COLUMNS} FROM courses WHERE code IN ({', '.join(['%s'] * len(codes))}) {db.row_lock}")
        courses = (dict(zip(FIELDS, row, strict=True)) for row in db.execute_sql(query, codes))
        return {course["code"]: course for course in courses}


FIELDS = {field.name: field for field in Course._meta.sorted_fields if field.name != "id"}
CHANGEABLE = [name for name, field in FIELDS.items() if not field.key]
DEFAULTS = {name: field.default for name, field in FIELDS.items() if field.default is not None}
REQUIRED = [name for name in CHANGEABLE if name not in DEFAULTS]  # of POST and PUT, besides the code
OPTIONAL_IN_FILES = [name for name, field in FIELDS.items() if not field.required_in_files]
FILE_DEFAULTS = dict.fromkeys(OPTIONAL_IN_FILES, "") | DEFAULTS
TEXTS = [name for name, field in FIELDS.items() if isinstance(field, Text)]
SORTS = [sign + name for sign in ("", "-") for name in ("id", *FIELDS)]


class Cursor(NamedTuple):
    """Where a page ends: the order of the list, and the id and the sorted field's value of the page's last course."""

    sort: str
    id: int
    value: object

    def __str__(self):
        return f"{self.sort}:{self.id}:{self.value}"

    @classmethod
    def parse(cls, text):
        """Return the cursor that str() has written; raise ValidationError for any other text."""
        match text.split(":", 2):
            case sort, number, value if sort in SORTS and re.fullmatch("[0-9]{1,18}", number) and "\0" not in value:
                is_number = isinstance(FIELDS.get(sort.removeprefix("-")), WholeNumber)
                return cls(sort, int(number), ANY_NUMBER.parse(value) if is_number else value)
        raise ValidationError("after must be copied from the link to the next page")


# The SQL of the queries that requests run, except logins. The database builds the JSON.


def sql(text):
    """Return SQL, written with %s, with the database's own placeholders."""
    return text.replace("%s", db.param)


COLUMNS = ", ".join(FIELDS)
VALUES = ", ".join(["%s"] * len(FIELDS))
MEMBERS = ", ".join(f"'{name}', {name}" for name in ("id", *FIELDS))
COURSE_JSON = f"{db.json_object}({MEMBERS})"
LIST_JSON = f"CASE COUNT(*) WHEN 0 THEN '[]' ELSE {db.json_array}({COURSE_JSON}) END"
GET_COURSE = sql(f"SELECT CAST({COURSE_JSON} AS {db.json_type}) FROM courses WHERE code = %s")
SELECT_ALL = f"SELECT COUNT(*), CAST({LIST_JSON} AS {db.json_type}) FROM courses"
SELECT_PAGE = f"""
    SELECT {{total}}, CAST({LIST_JSON} AS {db.json_type})
    FROM (SELECT * FROM courses {{where}} ORDER BY {{order}} LIMIT %s OFFSET %s) AS page"""
# A write checks its user in the same statement, and locks what it has checked until it is done, so that once a password
# or a role has changed, nothing is written by the old one.
TOKEN_MAY_WRITE = sql(f"""EXISTS (
    SELECT 1 FROM users WHERE username = %s AND stamp = COALESCE(%s, stamp) AND NOT read_only {db.share_lock})""")
KEY_MAY_WRITE = sql(f"""EXISTS (
    SELECT 1 FROM api_keys JOIN users ON users.id = user_id
    WHERE hash = %s AND (expires IS NULL OR expires > %s) AND NOT api_keys.read_only AND NOT users.read_only
    {db.share_lock})""")
FIND_KEY = sql("SELECT username, expires FROM api_keys JOIN users ON users.id = user_id WHERE hash = %s")
INSERT = f"INSERT INTO courses ({COLUMNS})"
ADD_COURSE = sql(f"{INSERT} SELECT {VALUES} WHERE ")
SET_FIELDS = ", ".join(f"{name} = COALESCE(%s, {name})" for name in CHANGEABLE)
UPDATE_COURSE = sql(f"UPDATE courses SET {SET_FIELDS} WHERE ")
DELETE_COURSE = "DELETE FROM courses WHERE "
HAS_CODE = sql("code = %s")
IS_SAME = sql(" AND ".join(f"{name} = %s" for name in ("id", *FIELDS)))


def stored_code(code):
    """Return a code in NFC, unless an earlier release has stored exactly this one."""
    normal = to_nfc(code, FIELDS["code"].maximum)
    if normal != code and Course.select().where(Course.code == code).exists():
        return code
    return normal


class Writer(NamedTuple):
    """Whose write it is: the user, and the token's stamp, which tokens of 2.0.0 lack, or the hash of the key."""

    username: str
    stamp: str | None = None
    key: str | None = None


def match_writer(by):
    """Return the SQL condition that the Writer `by` may write, and its values. None, at a Python prompt, may."""
    if not by:
        return "TRUE", []
    return (KEY_MAY_WRITE, [by.key, int(time.time())]) if by.key else (TOKEN_MAY_WRITE, [by.username, by.stamp])


def lock_writer(by):
    """Return whether the Writer `by` may write; that stays so until the transaction ends."""
    may_write, writer = match_writer(by)
    return bool(db.execute_sql(f"SELECT {may_write}", writer).fetchone()[0])


def match_course(code, old=None):
    """Return the SQL condition for the course with this code, or for `old`, unchanged since, and its values."""
    return (IS_SAME, [old[name] for name in ("id", *FIELDS)]) if old else (HAS_CODE, [stored_code(code)])


def search(q):
    """Return SQL conditions for the courses that have `q` in any text, in any case, and their values.

    The databases know different cases. So unless LIKE will do, each letter is searched for in all of its cases.
    """
    if q.isascii() and db.like:
        condition, pattern = f"{db.like} %s ESCAPE '!'", "%" + re.sub(r"([!%_])", r"!\1", q) + "%"
    else:
        cases = (dict.fromkeys([c, *(case for case in (c.lower(), c.upper()) if len(case) == 1)]) for c in q)
        letters = (f"[{''.join(case)}]" if len(case) > 1 else db.escape(*case) for case in cases)
        condition, pattern = f"{db.match} %s", db.any_text + "".join(letters) + db.any_text
    return ["(" + " OR ".join(f"{name} {condition}" for name in TEXTS) + ")"], [pattern] * len(TEXTS)


def end_of_prefix(prefix):
    """Return the first text after all codes with this prefix, in the order of Unicode, as the databases sort codes."""
    *start, last = prefix.rstrip("\U0010ffff") or [""]  # the last character, which has no next one
    if not last:
        return "\U0010ffff" * (FIELDS["code"].maximum + 1)
    number = ord(last) + 1
    return "".join(start) + chr(0xE000 if number == 0xD800 else number)  # between these two are no characters


# Validation: a course is checked once, before the query.


def check_names(arguments):
    """Raise TypeError for a keyword argument that is no field, as Python does where each has a parameter."""
    for name in arguments:
        if name not in FIELDS:
            raise TypeError(f"a course has no field {name}; its fields are {join_words(list(FIELDS), 'and')}")


def clean_fields(document, names=FIELDS):
    """Return the fields of an object that are given, each as its rule has it; raise ValidationError for a bad one."""
    return {name: FIELDS[name].clean(document[name]) for name in names if name in document}


def clean_course(document):
    """Return all fields of a new course; raise ValidationError for a bad or missing one."""
    if not isinstance(document, dict):
        raise ValidationError("a course must be an object")
    code = FIELDS["code"].clean(document.get("code", ""))
    if any(name not in document for name in REQUIRED):
        raise ValidationError(missing("and"))
    return DEFAULTS | {"code": code} | clean_fields(document, CHANGEABLE)


def missing(conjunction):
    """Return the tutorial's sentence for fields that are not given, "and" if all are needed, "or" if any will do."""
    labels = [FIELDS[name].label or name for name in REQUIRED or CHANGEABLE]
    return f"{join_words(labels, conjunction)} must be provided"


def join_words(words, conjunction):
    """Return words as a sentence has them: "code, name or instructor"."""
    *others, last = words
    return f"{', '.join(others)} {conjunction} {last}" if others else last


# -- Users, keys for scripts, and the signing key ----------------------------------------------------------------------

MIN_PASSWORD = 8  # characters of a new one; the dummy user's has fewer
KEY_PREFIX = "key_"  # which no token has

# Argon2id with 19 MiB, two passes and one lane: OWASP's Password Storage Cheat Sheet.
HASHER = argon2.PasswordHasher(memory_cost=19 * 1024, time_cost=2, parallelism=1)


@functools.cache
def unknown_user_hash():
    """Return the hash that is checked for an unknown user, so that both responses take equally long."""
    return HASHER.hash(secrets.token_hex())


class User(db.Model):
    """A user, who logs in with a password; one who is read-only may not write."""

    username = Text(1, 80, unique=True)
    password = Password(1024)
    read_only = peewee.BooleanField(default=False)
    stamp = peewee.CharField(32, default=functools.partial(secrets.token_hex, 16))  # renewed with every password

    class Meta:
        table_name = "users"

    @classmethod
    @retry_conflicts
    def create_user(cls, username, password, read_only=False):
        """Add a user; raise ValidationError for a bad field, peewee.IntegrityError if the name is taken."""
        cls.create(username=cls.username.clean(username), password=hash_password(password), read_only=read_only)

    @classmethod
    def log_in(cls, username, password):
        """Return the user if this is the password, else None; rehash it if HASHER's parameters have changed."""
        username = to_nfc(username, cls.username.maximum)
        password = to_nfc(password, cls.password.maximum)
        user, unknown = cls.get_or_none(cls.username == username), unknown_user_hash()
        try:
            HASHER.verify(user.password if user else unknown, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return None
        if user and HASHER.check_needs_rehash(user.password):
            user.renew(password=HASHER.hash(password))
        if user and not user.stamp and not user.renew(stamp=cls.stamp.default()):  # added by a copy of 2.0.0
            return cls.log_in(username, password)  # another login was faster
        return user

    @retry_conflicts
    def renew(self, **columns):
        """Set columns, unless the password or the stamp has changed since this user was read; return whether."""
        same = (User.id == self.id, User.password == self.password, User.stamp == self.stamp)
        renewed = User.update(columns).where(*same).execute() > 0
        if renewed:
            self.__data__.update(columns)
        return renewed

    @classmethod
    def match_user(cls, username, password):
        """Return whether this is the user's password."""
        return cls.log_in(username, password) is not None

    def set_password(self, password):
        """Change the password, unless it has changed since this user was read; return whether it was changed.

        Whoever is logged in must log in again to write. Raises ValidationError for a bad password.
        """
        return self.renew(password=hash_password(password), stamp=User.stamp.default())

    @classmethod
    def get_all_users(cls):
        """Return every user, in the order they were added."""
        return list(cls.select().order_by(cls.id))


def hash_password(password):
    """Return the Argon2 hash of a password; raise ValidationError for a bad one."""
    return HASHER.hash(User.password.clean(password))


class ApiKey(db.Model):
    """A key that a script sends in place of a token. It acts as its user, and ends with the user or at its date.

    Only its hash is stored. SHA-256 is enough for that, since nobody can guess 256 random bits.
    """

    hash = peewee.CharField(64, unique=True)
    user = peewee.ForeignKeyField(User, backref="keys", on_delete="CASCADE")
    label = Text(1, 80)
    read_only = peewee.BooleanField(default=False)
    created = peewee.BigIntegerField(default=lambda: int(time.time()))  # in Unix time
    expires = peewee.BigIntegerField(null=True)

    class Meta:
        table_name = "api_keys"

    @classmethod
    @retry_conflicts
    def create_key(cls, user, label, seconds=None, read_only=False):
        """Return a new key, which expires after `seconds`, or never.

        Raises ValidationError for a bad label, peewee.IntegrityError if the user has a key with this label.
        """
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        expires = seconds and int(time.time()) + seconds
        cls.create(hash=hash_key(key), user=user, label=cls.label.clean(label), read_only=read_only, expires=expires)
        return key

    @staticmethod
    def get_writer(key):
        """Return the Writer of a key, or None if there is no such key or it has expired."""
        hashed = hash_key(key)
        row = db.execute_sql(FIND_KEY, (hashed,)).fetchone()
        return Writer(row[0], key=hashed) if row and not has_ended(row[1]) else None


def hash_key(key):
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def has_ended(expires):
    """Return whether a key with this expiry, in Unix time or None, has expired."""
    return expires is not None and expires <= time.time()


class SigningKey(db.Model):
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


# -- The dummy data ----------------------------------------------------------------------------------------------------

DUMMY_COURSES = [  # code, name, instructor
    ("CSE115", "Introduction to programming language", "John stuart"),
    ("CSE465", "Introduction to neural network", "Andrew Ng"),
]
DUMMY_USER = ("faisal", "faisal")  # name, password


def add_dummy_data():
    """Add the tutorial's courses and user where they are missing; return what was added, such as "course CSE115"."""
    added = []
    for code, name, instructor in DUMMY_COURSES:
        with contextlib.suppress(peewee.IntegrityError):
            Course.add_course(code=code, name=name, instructor=instructor)
            added.append(f"course {code}")
    with contextlib.suppress(peewee.IntegrityError):
        User.create_user(*DUMMY_USER)
        added.append(f"user {DUMMY_USER[0]}")
    return added
