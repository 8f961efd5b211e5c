"""The data layer, as people call it from a Python prompt: field rules, courses, users, and what a request costs."""

import contextlib
import errno
import subprocess
import sys
import threading
import unicodedata

import argon2
import peewee
import pytest
from catalogue import (
    CHANGE,
    CODE_MISSING,
    CODE_RULE,
    CSE115,
    CSE465,
    INSTRUCTOR_RULE,
    NAME_RULE,
    NEW,
    another,
    course,
    insert,
)
from faults import constraint, postgres_error, sqlite_error
from playhouse.pool import MaxConnectionsExceeded
from processes import PYTHON, ROOT

import database
import models
from database import MariaDB, PostgreSQL, SQLite
from models import Course, Mode, SigningKey, User, ValidationError

RULES = {"username": User.username, "password": User.password} | models.FIELDS

# -- Field rules -------------------------------------------------------------------------------------------------------

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
    ("code", ("", " ", "\n\u3000"), CODE_MISSING),
    ("code", ("x" * 21, "a/b", "/", ".", "..", "." * 20, " .. ", "a\0b", "a\ud800"), CODE_RULE),
    ("name", ("", " ", "x" * 121, "a\nb", "a\x7fb", "a\x9fb", "\udfff"), NAME_RULE),
    ("instructor", ("x" * 121, "a\tb", "a\udc00"), INSTRUCTOR_RULE),
    ("username", ("", " ", "x" * 81, "a\x1bb", "\ud800"), USERNAME),
    ("password", ("", "x" * 1025, "secret\ud800"), PASSWORD),
    *((field, (None, 5, True, b"A", ["A"]), f"{field} must be a string") for field in GOOD),
]


@pytest.mark.parametrize(("field", "values"), GOOD.items())
def test_a_good_value_is_kept(field, values):
    assert [RULES[field].clean(value) for value in values] == list(values)


@pytest.mark.parametrize(("field", "values", "error"), BAD)
def test_a_bad_value_is_refused_with_the_field_and_the_rule(field, values, error):
    for value in values:
        with pytest.raises(ValidationError) as refused:
            RULES[field].clean(value)
        assert str(refused.value).startswith(error)


@pytest.mark.parametrize("field", ["code", "name", "instructor", "username"])
def test_white_space_at_either_end_is_trimmed(field):
    white_space = " \t\r\n\u3000\xa0\u2003\x85" * 200
    assert RULES[field].clean(f"{white_space}A b{white_space}") == "A b"


def test_control_characters_and_surrogates_are_all_that_a_name_cannot_hold():
    allowed = set()
    for character in map(chr, range(0x10000)):
        with contextlib.suppress(ValidationError):
            assert RULES["name"].clean(f"a{character}b") == unicodedata.normalize("NFC", f"a{character}b")
            allowed.add(character)
    assert allowed == {c for c in map(chr, range(0x10000)) if unicodedata.category(c) not in ("Cc", "Cs")}


@pytest.mark.parametrize("field", ["code", "name", "instructor", "username"])
def test_text_is_measured_in_nfc_and_no_length_takes_quadratic_time(field):
    rule = RULES[field]
    longest = "\u1f82" * rule.maximum
    assert rule.clean(unicodedata.normalize("NFD", longest)) == longest
    for text in (unicodedata.normalize("NFD", longest) + "a", "a" + "\u0315\u0300" * 10**6):
        with pytest.raises(ValidationError):
            rule.clean(text)


def test_a_password_is_measured_as_it_is_given_and_is_the_same_in_any_form():
    assert RULES["password"].clean("e\u0301" * 512) == "é" * 512
    for text in ("e\u0301" * 512 + "a", "\u0315\u0300" * 10**6):
        with pytest.raises(ValidationError):
            RULES["password"].clean(text)


# -- Courses -----------------------------------------------------------------------------------------------------------


def test_the_tutorials_course_methods_work_under_their_names(app):
    Course.add_course("CSE225", "Ada", "Data structures")
    added = Course.get_course("CSE225")
    assert added == course("CSE225", "Data structures", "Ada") | {"id": added["id"]}
    assert [row["code"] for row in Course.get_all_courses()] == ["CSE115", "CSE465", "CSE225"]
    assert Course.update_course("CSE225", instructor="") is True
    assert Course.get_course("CSE225") == added | {"instructor": ""}
    for _ in range(2):  # the second changes nothing
        assert Course.update_course("CSE225", "Grace", "Graphs") is True
    assert Course.get_course("CSE225") == added | {"name": "Graphs", "instructor": "Grace"}
    with pytest.raises(peewee.IntegrityError):
        Course.add_course("CSE225", "Ada", "Data structures")
    assert Course.delete_course("CSE225") is True
    assert Course.delete_course("CSE225") is False
    assert Course.update_course("CSE225", name="Trees") is False
    assert Course.get_course("CSE225") is None


def test_a_bad_field_is_refused_from_python_too(app):
    with pytest.raises(ValueError, match="code must be 1 to 20 characters"):
        Course.add_course("a/b", "Ada", "Data structures")
    with pytest.raises(ValueError, match="name must be 1 to 120 characters"):
        Course.update_course("CSE115", name="")
    assert len(Course.get_all_courses()) == 2


def test_a_change_can_require_that_the_course_is_as_it_was(app):
    old = Course.get_course("CSE115")
    for field in old:
        other = old | {field: another(old[field])}
        assert Course.update_course("CSE115", name="Changed", old=other) is False
        assert Course.delete_course("CSE115", other) is False
    assert Course.update_course("CSE115", name="Changed", old=old) is True
    assert Course.delete_course("CSE115", old) is False
    assert Course.delete_course("CSE115", old | {"name": "Changed"}) is True


@pytest.mark.parametrize("name", ["reader", "nobody", "", "Faisal"])
def test_nothing_is_written_by_a_user_who_may_not_write_when_it_happens(app, name):
    User.create_user("reader", "secret", read_only=True)
    by, editor = models.Writer(name), models.Writer("faisal")
    before = Course.get_all_courses()
    assert Course.add_course("CSE225", "Ada", "Data structures", by=by) is False
    assert Course.update_course("CSE115", name="Changed", by=by) is False
    assert Course.delete_course("CSE115", by=by) is False
    assert Course.get_all_courses() == before
    assert Course.add_course("CSE225", "Ada", "Data structures", by=editor) is True
    assert Course.update_course("CSE115", name="Changed", by=editor) is True
    assert Course.delete_course("CSE115", by=editor) is True


def test_the_list_is_in_the_order_of_the_ids(app):
    for number in (9000, 30, 7000, 500):
        insert(NEW | {"code": f"C{number}"}, id=number)
    Course.delete_course("CSE115")
    Course.add_course("CSE225", "Ada", "Data structures")
    ids = [row["id"] for row in Course.get_all_courses()]
    assert len(ids) == 6
    assert ids == sorted(ids)


# -- Uploads -----------------------------------------------------------------------------------------------------------


def counts(stored):
    return stored.created, stored.updated, stored.deleted, stored.unchanged


def test_an_upload_larger_than_a_batch_is_counted_whole(app):
    rows = [NEW | {"code": f"C{number}"} for number in range(2 * models.BATCH + 1)]
    assert counts(Course.store_courses(rows)) == (2 * models.BATCH + 1, 0, 0, 0)
    rows = [row | {"name": "Changed"} if number % 2 else row for number, row in enumerate(rows)]
    assert counts(Course.store_courses([*rows, NEW], Mode.UPDATE)) == (1, models.BATCH, 0, models.BATCH + 1)
    assert counts(Course.store_courses(rows[5:], Mode.REPLACE)) == (0, 0, 8, 2 * models.BATCH - 4)


def test_fields_that_an_upload_does_not_give_are_left_alone_or_get_defaults(app):
    rows = [{"code": "CSE115", "name": "Basics"}, {"code": "CSE225", "name": "Trees"}]
    Course.store_courses(rows, Mode.UPDATE)
    courses = {row["code"]: row for row in Course.get_all_courses()}
    assert courses["CSE115"]["name"] == "Basics" and courses["CSE115"]["instructor"] == CSE115["instructor"]
    assert courses["CSE225"]["instructor"] == ""


def test_an_upload_lists_its_changes_and_a_dry_run_makes_none(app):
    before, changed = Course.get_all_courses(), CSE115 | {"name": "Basics"}
    stored = Course.store_courses([NEW, changed], Mode.REPLACE, verbose=True, dry_run=True)
    assert stored.changes == [(None, NEW), (CSE115, changed), (CSE465, None)]
    assert Course.get_all_courses() == before


def test_a_taken_code_refuses_an_upload_or_is_skipped(app):
    with pytest.raises(peewee.IntegrityError):
        Course.store_courses([NEW, CSE115 | {"name": "Basics"}])
    stored = Course.store_courses([NEW, CSE115 | {"name": "Basics"}], Mode.SKIP)
    assert (counts(stored), stored.taken) == ((1, 0, 0, 0), ["CSE115"])
    assert Course.get_course("CSE115")["name"] == CSE115["name"]


def test_a_replaced_list_keeps_its_ids_and_what_is_to_be_kept(app):
    before = Course.get_all_courses()
    Course.store_courses([CSE115], Mode.REPLACE, keep=["CSE465"])
    assert Course.get_all_courses() == before


def test_a_list_that_has_changed_is_not_replaced(app):
    _, old, _ = Course.get_page()
    Course.add_course(**NEW)
    assert Course.store_courses([CSE115], Mode.REPLACE, old=old) is None
    assert len(Course.get_all_courses()) == 3
    _, old, _ = Course.get_page()
    assert Course.store_courses([CSE115], Mode.REPLACE, old=old).deleted == 2


@pytest.mark.parametrize("mode", Mode)
def test_an_upload_of_a_user_who_may_not_write_stores_nothing(app, mode):
    before = Course.get_all_courses()
    assert Course.store_courses([NEW], mode, by=models.Writer("nobody")) is None
    assert Course.get_all_courses() == before


def test_an_upload_that_the_database_refuses_for_another_reason_is_a_fault(app):
    with constraint("name <> 'Forbidden'"), pytest.raises(peewee.DatabaseError):
        Course.store_courses([NEW | {"name": "Forbidden"}])
    assert len(Course.get_all_courses()) == 2


# -- Users and the signing key -----------------------------------------------------------------------------------------

WEAK = argon2.PasswordHasher(memory_cost=8, time_cost=3, parallelism=1)


@pytest.fixture
def user(app):
    User.create_user("grace", "hopper")
    return User.get(User.username == "grace")


def test_the_tutorials_user_methods_work_under_their_names(user):
    assert User.match_user("grace", "hopper") is True
    assert User.match_user("grace", "faisal") is False
    assert User.match_user("Grace", "hopper") is False
    assert User.match_user("nobody", "hopper") is False
    assert [user.username for user in User.get_all_users()] == ["faisal", "grace"]
    with pytest.raises(peewee.IntegrityError):
        User.create_user("grace", "another")
    User.create_user("alan", "hopper")
    assert user.password != User.get(User.username == "alan").password  # each has a salt of its own


@pytest.mark.sqlite
def test_passwords_are_argon2id_with_owasps_parameters():
    """In a process of its own, as the tests may use weaker parameters."""
    command = [sys.executable, "-c", "import models; print(models.HASHER.hash('a'), models.unknown_user_hash())"]
    for hashed in subprocess.check_output(command, cwd=ROOT, text=True, timeout=30).split():
        assert hashed.startswith("$argon2id$v=19$m=19456,t=2,p=1$")


def test_a_login_renews_a_hash_with_other_parameters(user):
    weak = WEAK.hash("hopper")
    User.update(password=weak).where(User.username == "grace").execute()
    assert not User.match_user("grace", "wrong")
    assert User.get_by_id(user.id).password == weak
    assert User.match_user("grace", "hopper")
    renewed = User.get_by_id(user.id).password
    assert renewed != weak
    assert User.match_user("grace", "hopper")
    assert User.get_by_id(user.id).password == renewed


def test_a_renewed_hash_does_not_undo_a_change_of_password(user, monkeypatch):
    User.update(password=WEAK.hash("hopper")).where(User.username == "grace").execute()

    class Hasher(argon2.PasswordHasher):
        def check_needs_rehash(self, hashed):
            User.update(password=models.hash_password("changed")).where(User.username == "grace").execute()
            return True

    monkeypatch.setattr(models, "HASHER", Hasher(memory_cost=8, time_cost=2, parallelism=1))
    User.match_user("grace", "hopper")
    assert User.match_user("grace", "changed")


@pytest.mark.parametrize("stored", ["hopper", "", "$argon2id$", "$2b$12$abcdefghijklmnopqrstuv"])
def test_a_stored_text_that_is_no_argon2_hash_matches_nothing(user, stored):
    User.update(password=stored).where(User.username == "grace").execute()
    assert User.match_user("grace", stored) is False


def test_an_unknown_user_costs_a_hash_too(app, monkeypatch):
    checked = []

    class Hasher:
        def verify(self, hashed, password):
            checked.append(password)
            raise argon2.exceptions.VerifyMismatchError

    monkeypatch.setattr(models, "HASHER", Hasher())
    assert User.match_user("nobody", "secret") is False
    assert checked == ["secret"]


def test_the_signing_key_is_made_once_and_the_first_of_two_wins(app, monkeypatch):
    key = SigningKey.get_key()
    assert len(bytes.fromhex(key)) == 32
    assert SigningKey.get_key() == key
    create = SigningKey.create

    def create_second(**fields):
        """Lose to another thread, as to another process, that makes the same row."""
        first = threading.Thread(target=lambda: create(id=1, value=key) and database.db.close())
        first.start()
        first.join()
        return create(**fields)

    SigningKey.delete().execute()
    with monkeypatch.context() as patch:
        patch.setattr(SigningKey, "create", create_second)
        assert SigningKey.get_key() == key
    monkeypatch.setattr(SigningKey, "insert", None)  # a login writes nothing
    assert SigningKey.get_key() == key


# -- The database ------------------------------------------------------------------------------------------------------


class Unreachable:
    attempts = 0

    def __init__(self, database):
        pass

    def _connect(self):
        self.attempts += 1
        raise peewee.OperationalError("timeout expired")


class Pool(database.ServerPool, Unreachable):
    pass


def test_a_server_that_cannot_be_reached_is_asked_again_only_after_a_second(monkeypatch):
    """Threads connect one at a time, so that each would wait for all attempts before its own."""
    pool, now = Pool(None), [100]
    monkeypatch.setattr(database.time, "monotonic", lambda: now[0])
    for seconds, attempts in ((0, 1), (0.9, 1), (1, 2), (1.5, 2)):
        now[0] = 100 + seconds
        with pytest.raises(peewee.OperationalError):
            pool._connect()
        assert pool.attempts == attempts


class Taken:
    def __init__(self, database):
        pass

    def connect(self, reuse_if_open):
        raise MaxConnectionsExceeded("Exceeded maximum connections.")


class TakenPool(database.ServerPool, Taken):
    pass


def test_more_connections_than_database_url_allows_are_an_outage():
    with pytest.raises(peewee.OperationalError, match="Exceeded maximum connections"):
        TakenPool(None).connect()


@pytest.mark.sqlite
def test_sqlite_is_set_to_lose_nothing(app):
    assert database.db.pragma("journal_mode") == "wal"
    assert database.db.pragma("synchronous") == 2  # FULL
    assert database.db.pragma("foreign_keys") == 1
    assert database.db.pragma("busy_timeout") == 5000  # milliseconds


@pytest.mark.sqlite
@pytest.mark.parametrize("url", ["sqlite:///made.db", "postgresql://127.0.0.1:1/none", "mysql://127.0.0.1:1/none"])
def test_an_import_opens_no_database_and_creates_no_file(tmp_path, url):
    environment = {"DATABASE_URL": url, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PYTHON, "-c", "import course_api, seed; print(course_api.database.db.is_closed())"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
    assert list(tmp_path.iterdir()) == []


OUTAGES = [
    (SQLite, sqlite_error(code))
    for code in ("BUSY", "LOCKED", "FULL", "CANTOPEN", "IOERR_WRITE", "READONLY", "CORRUPT", "NOTADB", "NOMEM")
]
OUTAGES += [
    (PostgreSQL, postgres_error(state)) for state in ("08006", "25006", "28P01", "42501", "53300", "53100", "57P01")
]
OUTAGES += [
    (PostgreSQL, peewee.OperationalError("Connection refused")),
    (PostgreSQL, peewee.InterfaceError("connection already closed")),
    (PostgreSQL, peewee.DatabaseError("server closed the connection unexpectedly")),
]
NUMBERS = (1021, 1040, 1045, 1047, 1053, 1114, 1142, 1203, 1205, 1213, 1226, 1290, 1836, 1969, 2003, 2006, 2013)
OUTAGES += [(MariaDB, peewee.OperationalError(number, "")) for number in NUMBERS]
OUTAGES += [(MariaDB, peewee.OperationalError("could not connect a moment ago"))]
WORDS = [
    (SQLite, sqlite_error("FULL", "database or disk is full"), "the disk is full (database or disk is full)"),
    (SQLite, OSError(errno.ENOSPC, "No space left on device"), "the disk is full (No space left on device)"),
    (SQLite, peewee.OperationalError("two\n lines"), "two lines"),
    (PostgreSQL, postgres_error("25006"), "the database is read-only (25006)"),
    (MariaDB, peewee.OperationalError(1114, "The table is full"), "the disk is full (1114, The table is full)"),
]
MISTAKES = ["SELECT locked", "SELECT * FROM is_full", "SELEC", "INSERT INTO courses (id) VALUES (1)"]


@pytest.mark.parametrize(("kind", "error"), OUTAGES)
def test_a_database_that_is_away_locked_full_or_refuses_us_is_an_outage(kind, error):
    assert kind.is_outage(kind, error)


@pytest.mark.parametrize(("kind", "error", "words"), WORDS)
def test_an_outage_is_described_in_the_usual_words_and_the_drivers(monkeypatch, kind, error, words):
    monkeypatch.setattr(database, "db", kind)
    assert database.describe(error) == words


@pytest.mark.parametrize("sql", MISTAKES)
def test_a_mistake_in_sql_and_an_error_of_another_class_are_no_outage(app, sql):
    with pytest.raises(peewee.PeeweeException) as mistake, database.db.atomic():
        database.db.execute_sql(sql)
    assert not database.db.is_outage(mistake.value)
    assert not database.db.is_outage(ValueError("database is locked"))
    assert not database.db.is_outage(peewee.IntegrityError("database is locked"))


# -- Statements of a request -------------------------------------------------------------------------------------------


@pytest.fixture
def statements(app):
    """The SQL that reaches the database from now on."""
    seen = []
    connection = database.db.connection()
    connection.set_trace_callback(seen.append)
    yield seen
    connection.set_trace_callback(None)


REQUESTS = [
    ("SELECT", lambda client: client.get("/courses")),
    ("SELECT", lambda client: client.get("/courses?q=a&limit=1")),
    ("SELECT", lambda client: client.get("/courses/CSE115")),
    ("INSERT", lambda client: client.post_json("/courses", NEW)),
    ("UPDATE", lambda client: client.put_json("/courses/CSE115", CHANGE)),
    ("DELETE", lambda client: client.delete("/courses/CSE115")),
]


@pytest.mark.sqlite
@pytest.mark.parametrize(("kind", "request_"), REQUESTS)
def test_a_request_is_one_statement_which_looks_up_the_user_of_a_write(client, statements, kind, request_):
    request_(client)
    assert [statement.split()[0] for statement in statements] == [kind]
    assert ("FROM users" in statements[0]) == (kind != "SELECT")


@pytest.mark.sqlite
def test_one_course_and_one_user_are_found_by_an_index(client, statements):
    client.get("/courses/CSE115")
    client.put_json("/courses/CSE115", CHANGE)
    client.delete("/courses/CSE115")
    assert len(statements) == 3
    for statement in list(statements):
        plan = database.db.execute_sql(f"EXPLAIN QUERY PLAN {statement}").fetchall()
        assert all("SEARCH" in step for *_, step in plan if step != "SCALAR SUBQUERY 1")


@pytest.mark.sqlite
def test_a_request_that_is_turned_away_asks_the_database_nothing(stranger, statements):
    stranger.get("/courses", status=401)
    stranger.post_json("/courses?token=bad", NEW, status=401)
    assert statements == []
