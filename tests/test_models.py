"""The data layer, as people call it from a Python prompt: field rules, courses, users, and what a request costs."""

import json
import sqlite3
import subprocess
import unicodedata

import argon2
import peewee
import psycopg2.errors
import pymysql
import pytest
from conftest import PYTHON, ROOT, TEST_DATABASE_URL

import models
from models import Course, SigningKey, User, ValidationError, clean

# -- Field rules -------------------------------------------------------------------------------------------------------

CODE = "code must be 1 to 20 characters, not only dots, with no / or control characters"
NAME = "name must be 1 to 120 characters, with no control characters"
INSTRUCTOR = "instructor must be 0 to 120 characters, with no control characters"
USERNAME = "username must be 1 to 80 characters, with no control characters"
PASSWORD = "password must be 1 to 1024 characters"

GOOD = {
    "code": ("A", "x" * 20, "😀" * 20, "AAS 100", "6.006", "MATH&151", "...a", "%2F", "\\"),
    "name": ("A", "x" * 120, "物" * 120, "a / b", "...", "\u202ea", "a\u2028b", "\ufffe"),
    "instructor": ("", "A", "x" * 120, "a / b"),
    "username": ("A", "x" * 80, "a / b"),
    "password": (" ", "x" * 1024, " a\0\n "),
}
BAD = [
    ("code", ("", " ", "\n\u3000"), "course code must be provided"),
    ("code", ("x" * 21, "a/b", "/", ".", "..", "." * 20, " .. ", "a\0b", "a\ud800"), CODE),
    ("name", ("", " ", "x" * 121, "a\nb", "a\x7fb", "a\x9fb", "\udfff"), NAME),
    ("instructor", ("x" * 121, "a\tb", "a\udc00"), INSTRUCTOR),
    ("username", ("", " ", "x" * 81, "a\x1bb", "\ud800"), USERNAME),
    ("password", ("", "x" * 1025, "secret\ud800"), PASSWORD),
    *((field, (None, 5, True, b"A", ["A"]), f"{field} must be a string") for field in GOOD),
]


@pytest.mark.parametrize(("field", "values"), GOOD.items())
def test_a_good_value_is_kept(field, values):
    assert [clean(field, value) for value in values] == list(values)


@pytest.mark.parametrize(("field", "values", "error"), BAD)
def test_a_bad_value_is_refused_with_the_field_and_the_rule(field, values, error):
    for value in values:
        with pytest.raises(ValidationError) as refused:
            clean(field, value)
        assert str(refused.value).startswith(error)


@pytest.mark.parametrize("field", ["code", "name", "instructor", "username"])
def test_white_space_at_either_end_is_trimmed(field):
    assert clean(field, " \t\r\n\u3000\xa0A b\u2003\x85 ") == "A b"
    longest = {"code": 20, "username": 80}.get(field, 120)
    assert clean(field, " " * 200 + "x" * longest + " ") == "x" * longest


def test_control_characters_and_surrogates_are_all_that_a_name_cannot_hold():
    refused = set()
    for character in map(chr, range(0x10000)):
        try:
            clean("name", f"a{character}b")
        except ValidationError:
            refused.add(character)
    assert refused == {chr(number) for number in range(0x10000) if unicodedata.category(chr(number)) in ("Cc", "Cs")}


# -- Courses -----------------------------------------------------------------------------------------------------------


def test_the_tutorials_course_methods_work_under_their_names(app):
    Course.add_course("CSE225", "Ada", "Data structures")
    course = Course.get_course("CSE225")
    assert course == {"id": course["id"], "code": "CSE225", "name": "Data structures", "instructor": "Ada"}
    assert [course["code"] for course in Course.get_all_courses()] == ["CSE115", "CSE465", "CSE225"]
    assert Course.update_course("CSE225", instructor="") is True
    assert Course.update_course("CSE225", name="Trees") is True
    assert Course.get_course("CSE225") == course | {"name": "Trees", "instructor": ""}
    assert Course.update_course("CSE225", "Grace", "Graphs") is True
    assert Course.get_course("CSE225") == course | {"name": "Graphs", "instructor": "Grace"}
    assert Course.delete_course("CSE225") is True
    assert Course.delete_course("CSE225") is False
    assert Course.update_course("CSE225", name="Trees") is False
    assert Course.get_course("CSE225") is None


def test_a_bad_field_is_refused_from_python_too(app):
    with pytest.raises(ValueError, match="code must be 1 to 20 characters"):
        Course.add_course("a/b", "Ada", "Data structures")
    with pytest.raises(ValueError, match="name must be 1 to 120 characters"):
        Course.update_course("CSE115", name="")
    with pytest.raises(ValueError, match="instructor must be a string"):
        Course.add_course("CSE225", 5, "Data structures")
    assert len(Course.get_all_courses()) == 2


def test_a_change_can_require_that_the_course_is_as_it_was(app):
    old = Course.get_course("CSE115")
    for field in old:
        other = old | {field: 5 if field == "id" else "Other"}
        assert Course.update_course("CSE115", name="Changed", old=other) is False
        assert Course.delete_course("CSE115", other) is False
    assert Course.update_course("CSE115", name="Changed", old=old) is True
    assert Course.delete_course("CSE115", old) is False
    assert Course.delete_course("CSE115", old | {"name": "Changed"}) is True


def test_json_from_the_database_is_exact(app):
    odd = "\" \\ / ' <&> \u2028 \ufffe é 物 😀 {[,]} %s"
    Course.add_course("odd \"'\\", odd, odd)
    course = Course.get_course("odd \"'\\")
    assert (course["name"], course["instructor"]) == (odd, odd)
    assert json.loads(Course.get_json("odd \"'\\")) == Course.get_all_courses()[-1] == course


def test_the_list_is_in_the_order_of_the_ids(app):
    for number in (9000, 30, 7000, 500):
        Course.insert(id=number, code=f"C{number}", name="Basics", instructor="Ada").execute()
    Course.delete_course("CSE115")
    Course.add_course("CSE225", "Ada", "Data structures")
    ids = [course["id"] for course in Course.get_all_courses()]
    assert len(ids) == 6
    assert ids == sorted(ids)


# -- Uploads -----------------------------------------------------------------------------------------------------------

NEW = {"code": "CSE225", "name": "Data structures", "instructor": "Ada"}
CHANGED = {"code": "CSE465", "name": "Networks", "instructor": ""}
SAME = {"code": "CSE115", "name": "Introduction to programming language", "instructor": "John stuart"}


def test_an_upload_counts_what_it_created_updated_and_left_unchanged(app):
    rows = {1: NEW, 2: CHANGED, 3: SAME | {"name": f" {SAME['name']} "}, 4: NEW | {"code": "CSE226"}}
    assert Course.add_courses(rows, update=True, dry_run=True) == (2, 1, 1)
    assert len(Course.get_all_courses()) == 2
    assert Course.get_course("CSE465")["name"] != "Networks"
    before = Course.get_course("CSE465")
    assert Course.add_courses(rows, update=True) == (2, 1, 1)
    assert Course.get_course("CSE465") == before | CHANGED
    assert Course.add_courses(rows, update=True) == (0, 0, 4)
    assert Course.add_courses({1: NEW | {"code": "CSE227"}}) == (1, 0, 0)
    assert Course.add_courses({}) == Course.add_courses({}, update=True) == (0, 0, 0)


def test_an_upload_larger_than_a_batch_is_counted_whole(app):
    rows = {number: NEW | {"code": f"C{number}"} for number in range(2 * models.BATCH + 1)}
    assert Course.add_courses(rows) == (2 * models.BATCH + 1, 0, 0)
    rows |= {number: row | {"name": "Changed"} for number, row in rows.items() if number % 2}
    rows[-1] = NEW
    assert Course.add_courses(rows, update=True) == (1, models.BATCH, models.BATCH + 1)


TWICE, TAKEN = "Course code CSE225 is also in row", "Course code CSE115 is in the courses already"
REFUSED = [  # rows, options, whether all errors are taken codes, errors
    ({1: NEW, 2: NEW}, {}, True, {2: f"{TWICE} 1"}),
    ({1: NEW, 2: NEW}, {"update": True}, True, {2: f"{TWICE} 1"}),
    ({3: NEW, 5: NEW | {"code": " CSE225"}}, {"unit": "line"}, True, {5: "Course code CSE225 is also on line 3"}),
    ({1: NEW, 2: SAME}, {"dry_run": True}, True, {2: TAKEN}),
    ({1: NEW | {"name": ""}, 2: SAME}, {"update": True}, False, {1: NAME}),
    (
        {1: 5, 2: {}, 3: NEW, 4: NEW, 5: SAME, 6: CHANGED | {"code": "A"}},
        {},
        False,
        {1: "a course must be an object", 2: "course code must be provided", 4: f"{TWICE} 3", 5: TAKEN},
    ),
]


@pytest.mark.parametrize(("rows", "options", "conflict", "errors"), REFUSED)
def test_a_refused_upload_stores_nothing_and_names_each_bad_row(app, rows, options, conflict, errors):
    before = Course.get_all_courses()
    with pytest.raises(models.UploadError) as refused:
        Course.add_courses(rows, **options)
    assert (dict(refused.value.rows), refused.value.conflict) == (errors, conflict)
    number = "1 row was" if len(errors) == 1 else f"{len(errors)} rows were"
    assert str(refused.value) == f"nothing was stored; {number} refused"
    assert Course.get_all_courses() == before


# -- Users and the signing key -----------------------------------------------------------------------------------------

PARAMETERS = "$argon2id$v=19$m=19456,t=2,p=1$"
WEAK = argon2.PasswordHasher(memory_cost=8, time_cost=1, parallelism=1)


@pytest.fixture
def user(app):
    User.create_user("grace", "hopper")
    return User.get(User.username == "grace")


def test_the_tutorials_user_methods_work_under_their_names(user):
    assert User.match_user("grace", "hopper") is True
    assert User.match_user("grace", "faisal") is False
    assert User.match_user("Grace", "hopper") is False
    assert User.match_user("nobody", "hopper") is False
    assert "grace" in [str(user) for user in User.get_all_users()]


def test_a_user_may_write_unless_the_user_is_read_only(user):
    User.create_user("alan", "turing", read_only=True)
    assert [User.get_role(username) for username in ("grace", "alan", "nobody")] == ["editor", "reader", None]


def test_a_taken_code_or_name_is_an_integrity_error(user):
    with pytest.raises(peewee.IntegrityError):
        Course.add_course("CSE115", "Ada", "Data structures")
    with pytest.raises(peewee.IntegrityError):
        User.create_user("grace", "another")


def test_passwords_are_argon2id_with_owasps_parameters_and_a_salt_each(user):
    User.create_user("alan", "hopper")
    other = User.get(User.username == "alan")
    assert user.password.startswith(PARAMETERS)
    assert user.password != other.password
    User.update_user("alan", "turing")
    assert User.get_by_id(other.id).password.startswith(PARAMETERS)
    assert User.match_user("alan", "turing") and not User.match_user("alan", "hopper")
    assert User.match_user("grace", "hopper")


def test_a_login_renews_a_hash_with_other_parameters(user):
    old = WEAK.hash("hopper")
    User.update(password=old).where(User.username == "grace").execute()
    assert not User.match_user("grace", "wrong")
    assert User.get_by_id(user.id).password == old
    assert User.match_user("grace", "hopper")
    renewed = User.get_by_id(user.id).password
    assert renewed.startswith(PARAMETERS)
    assert User.match_user("grace", "hopper")
    assert User.get_by_id(user.id).password == renewed


def test_a_renewed_hash_does_not_undo_a_change_of_password(user, monkeypatch):
    User.update(password=WEAK.hash("hopper")).where(User.username == "grace").execute()

    class Hasher(argon2.PasswordHasher):
        def check_needs_rehash(self, hashed):
            User.update_user("grace", "changed")
            return True

    monkeypatch.setattr(models, "HASHER", Hasher(memory_cost=8, time_cost=2, parallelism=1))
    User.match_user("grace", "hopper")
    assert User.match_user("grace", "changed")


@pytest.mark.parametrize("stored", ["hopper", "", "$argon2id$", "$2b$12$abcdefghijklmnopqrstuv"])
def test_a_stored_text_that_is_no_argon2_hash_matches_nothing(user, stored):
    User.update(password=stored).where(User.username == "grace").execute()
    assert User.match_user("grace", stored) is False


def test_an_unknown_user_costs_a_hash_too(app, monkeypatch):
    expected, checked = models.UNKNOWN_USER, []

    class Hasher:
        def verify(self, hashed, password):
            checked.append((hashed, password))
            raise argon2.exceptions.VerifyMismatchError

    monkeypatch.setattr(models, "HASHER", Hasher())
    assert User.match_user("nobody", "secret") is False
    assert checked == [(expected, "secret")]
    assert expected.startswith(PARAMETERS)


def test_the_signing_key_is_made_once_and_the_first_of_two_wins(app, monkeypatch):
    key = SigningKey.get_key()
    assert len(bytes.fromhex(key)) == 32
    assert SigningKey.get_key() == key
    monkeypatch.setattr(SigningKey, "get_or_none", lambda **_: None)  # as another process sees it at that moment
    assert SigningKey.get_key() == key


# -- The database ------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_sqlite_is_set_to_lose_nothing(app):
    assert models.database.pragma("journal_mode") == "wal"
    assert models.database.pragma("synchronous") == 2  # FULL
    assert models.database.pragma("foreign_keys") == 1
    assert models.database.pragma("busy_timeout") == 5000  # milliseconds


@pytest.mark.sqlite
@pytest.mark.parametrize("module", ["models", "course_api"])
@pytest.mark.parametrize("url", ["sqlite:///made.db", "postgresql://127.0.0.1:1/none", "mysql://127.0.0.1:1/none"])
def test_an_import_opens_no_database_and_creates_no_file(tmp_path, module, url):
    environment = {"DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PYTHON, "-c", f"import {module}, models; print(models.database.is_closed())"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert list(tmp_path.iterdir()) == []


def make_error(kind, original, message):
    return kind(original(message), message)


LOCKED = ("database is locked", "database table is locked", "database or disk is full", "unable to open database file")
LOCKED += ("disk I/O error", "attempt to write a readonly database")
NUMBERS = (1021, 1040, 1053, 1114, 1205, 1213, 1290, 1836, 1969, 2003, 2006, 2013)
OUTAGES = {
    "sqlite": [
        *(make_error(peewee.OperationalError, sqlite3.OperationalError, message) for message in LOCKED),
        make_error(peewee.DatabaseError, sqlite3.DatabaseError, "database disk image is malformed"),
        make_error(peewee.DatabaseError, sqlite3.DatabaseError, "file is not a database"),
    ],
    "postgresql": [
        make_error(peewee.OperationalError, psycopg2.OperationalError, "Connection refused"),
        make_error(peewee.OperationalError, psycopg2.errors.AdminShutdown, "terminating connection"),
        make_error(peewee.OperationalError, psycopg2.errors.QueryCanceled, "canceling due to statement timeout"),
        make_error(peewee.OperationalError, psycopg2.errors.DiskFull, "could not extend file"),
        make_error(peewee.InterfaceError, psycopg2.InterfaceError, "connection already closed"),
        make_error(peewee.DatabaseError, psycopg2.DatabaseError, "server closed the connection unexpectedly"),
    ],
    "mysql": [peewee.OperationalError(pymysql.err.OperationalError(number, ""), number, "") for number in NUMBERS],
}
MISTAKES = ["SELECT nonsense", "SELECT locked", "SELECT * FROM is_full", "SELEC", "INSERT INTO courses (id) VALUES (1)"]


@pytest.mark.parametrize("error", OUTAGES[TEST_DATABASE_URL.partition(":")[0]], ids=str)
def test_a_database_that_is_away_locked_or_full_is_an_outage(error):
    assert models.is_outage(error)


@pytest.mark.parametrize("sql", MISTAKES)
def test_a_mistake_in_sql_is_no_outage(app, sql):
    with pytest.raises(peewee.PeeweeException) as mistake, models.database.atomic():
        models.database.execute_sql(sql)
    assert not models.is_outage(mistake.value)


@pytest.mark.parametrize("error", [ValueError("database is locked"), peewee.IntegrityError("locked"), KeyError("full")])
def test_an_error_of_another_class_is_no_outage(error):
    assert not models.is_outage(error)


# -- Statements of a request -------------------------------------------------------------------------------------------


@pytest.fixture
def statements(app):
    """The SQL that reaches the database from now on."""
    seen = []
    connection = models.database.connection()
    connection.set_trace_callback(seen.append)
    yield seen
    connection.set_trace_callback(None)


CHANGE = {"name": "Basics", "instructor": "Grace Hopper"}
REQUESTS = [
    (["SELECT"], lambda client: client.get("/courses")),
    (["SELECT"], lambda client: client.get("/courses?q=a&limit=1")),
    (["SELECT"], lambda client: client.get("/courses/CSE115")),
    (["SELECT", "INSERT"], lambda client: client.post_json("/courses", NEW)),
    (["SELECT", "INSERT"], lambda client: client.post_json("/courses", SAME, status=409)),
    (["SELECT", "UPDATE"], lambda client: client.put_json("/courses/CSE115", CHANGE)),
    (["SELECT", "UPDATE"], lambda client: client.patch_json("/courses/CSE999", CHANGE, status=404)),
    (["SELECT", "DELETE"], lambda client: client.delete("/courses/CSE115")),
    (["SELECT", "DELETE"], lambda client: client.delete("/courses/CSE999", status=400)),
]


@pytest.mark.sqlite
@pytest.mark.parametrize(("kinds", "request_"), REQUESTS)
def test_a_request_is_one_statement_and_a_write_looks_its_user_up(client, statements, kinds, request_):
    request_(client)
    assert [statement.split()[0] for statement in statements] == kinds
    if len(kinds) == 2:
        assert "users" in statements[0] and "courses" in statements[1]
    statements[:] = [statement for statement in statements if not statement.startswith("INSERT")]
    if "WHERE" in statements[-1] and "LIKE" not in statements[-1]:
        for statement in list(statements):
            plan = models.database.execute_sql(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            assert all("SEARCH" in step for *_, step in plan)


@pytest.mark.sqlite
def test_a_request_that_is_turned_away_asks_the_database_nothing(stranger, statements):
    stranger.get("/courses", status=401)
    stranger.post_json("/courses?token=bad", NEW, status=401)
    assert statements == []
