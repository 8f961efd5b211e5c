"""What the database refuses and no client has caused is a logged 500, never a 409; nothing is stored."""

import contextlib

import peewee
import pytest
import webtest
from catalogue import CSE115, NEW
from processes import SQLITE

import course_api
import database
from models import Course

ROWS = [NEW | {"code": f"C{number}"} for number in range(3)]
POSTGRESQL = isinstance(database.db, peewee.PostgresqlDatabase)
WRITES = pytest.mark.parametrize(("path", "body"), [("", NEW), ("", ROWS), ("?update=true", ROWS)])


@contextlib.contextmanager
def changed_by(*statements, undo):
    """Change the database for the block as another program could."""
    for sql in statements:
        database.db.execute_sql(sql)
    try:
        yield
    finally:
        for sql in undo:
            database.db.execute_sql(sql)


def audit():
    """Copy each new course's name to a table in which it is unique and taken."""
    table = "CREATE TABLE audit (code VARCHAR(120) UNIQUE)"
    insert_name = "INSERT INTO audit (code) VALUES (NEW.name)"
    trigger = f"CREATE TRIGGER copying AFTER INSERT ON courses FOR EACH ROW BEGIN {insert_name}; END"
    undo = ["DROP TRIGGER copying", "DROP TABLE audit"]
    if POSTGRESQL:
        function = f"CREATE FUNCTION copy_name() RETURNS trigger AS $$BEGIN {insert_name}; RETURN NEW; END$$"
        trigger = "CREATE TRIGGER copying AFTER INSERT ON courses FOR EACH ROW EXECUTE FUNCTION copy_name()"
        undo = ["DROP TRIGGER copying ON courses", "DROP FUNCTION copy_name", "DROP TABLE audit"]
        trigger = f"{function} LANGUAGE plpgsql; {trigger}"
    return changed_by(table, f"INSERT INTO audit VALUES ('{NEW['name']}')", trigger, undo=undo)


def refuse():
    """Let a trigger refuse every new course."""
    trigger = "CREATE TRIGGER refusing BEFORE INSERT ON courses FOR EACH ROW"
    undo = "DROP TRIGGER refusing"
    if POSTGRESQL:
        function = "CREATE FUNCTION refuse() RETURNS trigger AS $$BEGIN RAISE EXCEPTION 'code is taken'; END$$"
        sql, undo = f"{function} LANGUAGE plpgsql; {trigger} EXECUTE FUNCTION refuse()", "DROP FUNCTION refuse CASCADE"
    elif SQLITE:
        sql = f"{trigger} BEGIN SELECT RAISE(ABORT, 'courses.code is taken'); END"
    else:
        sql = f"{trigger} SIGNAL SQLSTATE '23000' SET MESSAGE_TEXT = 'code is taken'"
    return changed_by(sql, undo=[undo])


def require_another_column():
    """Add a column that this release does not know, and that has no default."""
    if SQLITE:  # which adds such a column only to a new table
        fields = ", ".join(f'"{name}" TEXT' for name in NEW)
        table = f"CREATE TABLE courses (id INTEGER PRIMARY KEY, {fields}, extra TEXT NOT NULL)"
        rename = "ALTER TABLE courses RENAME TO kept"
        return changed_by(rename, table, undo=["DROP TABLE courses", "ALTER TABLE kept RENAME TO courses"])
    column = "ALTER TABLE courses ADD COLUMN extra VARCHAR(9) NOT NULL DEFAULT ''"
    no_default = "ALTER TABLE courses ALTER COLUMN extra DROP DEFAULT"
    return changed_by(column, no_default, undo=["ALTER TABLE courses DROP COLUMN extra"])


def repeat_an_id():
    """Set PostgreSQL's sequence to an id that is taken, as after rows were copied with their ids."""
    sequence = "SELECT setval('courses_id_seq', ({} FROM courses), {})"
    return changed_by(sequence.format("SELECT MIN(id)", "false"), undo=[sequence.format("SELECT MAX(id)", "true")])


FAULTS = [audit, refuse, require_another_column, *([repeat_an_id] if POSTGRESQL else [])]


@WRITES
@pytest.mark.parametrize("fault", FAULTS)
def test_a_constraint_of_another_program_is_a_logged_500(client, caplog, fault, path, body):
    with fault():
        before = Course.get_all_courses()
        response = post(client, path, body)
        after = Course.get_all_courses()
    assert (response.status_int, response.json) == (500, {"error": "Internal Server Error"})
    assert after == before
    assert [record.message for record in caplog.records] == ["unexpected error"]
    assert caplog.records[0].exc_info


@WRITES
def test_a_taken_code_is_no_fault(client, caplog, path, body):
    body = CSE115 if body == NEW else [*body, CSE115]
    assert post(client, path, body).status_int == (200 if path else 409)
    assert caplog.records == []


def post(client, path, body):
    """Send a request whose response is not described: a 500 never is."""
    plain = webtest.TestApp(course_api.app)
    plain.authorization = client.authorization
    return plain.post_json(f"/courses{path}", body, status="*")
