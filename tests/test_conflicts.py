"""What another client's deadlock or lock has undone is retried for a few seconds, where that is safe."""

import concurrent.futures
import contextlib
import json
import threading

import peewee
import pytest
from faults import postgres_error, sqlite_error
from processes import SQLITE

import database
import models
from database import MariaDB, PostgreSQL, SQLite
from models import Course, Mode

Operational = peewee.OperationalError
CONFLICTS = {
    "a serialization failure": (PostgreSQL, postgres_error("40001")),
    "a deadlock in PostgreSQL": (PostgreSQL, postgres_error("40P01")),
    "a deadlock in MariaDB": (MariaDB, Operational(1213, "Deadlock found when trying to get lock")),
    "a changed row in MariaDB": (MariaDB, Operational(1020, "Record has changed since last read")),
    "a locked SQLite database": (SQLite, sqlite_error("BUSY")),
    "a locked table in memory": (SQLite, sqlite_error("LOCKED")),
}
FAULTS = {
    "a timeout": (PostgreSQL, postgres_error("57014")),
    "a lost connection": (MariaDB, Operational(2013, "Lost connection to server during query")),
    "a full disk": (SQLite, sqlite_error("FULL")),
    "a taken code": (SQLite, sqlite_error("CONSTRAINT_UNIQUE")),
}


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that retries would have paused; no test waits for them."""
    seconds = []
    monkeypatch.setattr(database.time, "sleep", seconds.append)
    return seconds


def fail(times, error):
    """Return an operation that fails so many times, and the list of its attempts."""
    attempts = []

    @database.retry_conflicts
    def operation(argument):
        attempts.append(argument)
        if len(attempts) <= times:
            raise error
        return "done"

    return operation, attempts


@pytest.fixture
def on(monkeypatch):
    """A function that lets errors be judged as those of this kind of database."""

    def on(kind):
        monkeypatch.setattr(database, "db", kind.__new__(kind))
        monkeypatch.setattr(database.db, "in_transaction", lambda: False, raising=False)

    return on


@pytest.mark.parametrize(("kind", "error"), CONFLICTS.values(), ids=CONFLICTS)
def test_a_conflict_is_retried_after_a_random_pause(on, kind, error, pauses):
    on(kind)
    operation, attempts = fail(9, error)
    assert operation("argument") == "done"
    assert attempts == ["argument"] * 10
    assert len(set(pauses)) > 1 and min(pauses) > 0 and max(pauses) < 1


@pytest.mark.parametrize(("kind", "error"), FAULTS.values(), ids=FAULTS)
def test_any_other_fault_is_not_retried(on, kind, error):
    on(kind)
    operation, attempts = fail(1, error)
    with pytest.raises(type(error)):
        operation("argument")
    assert len(attempts) == 1


def test_a_conflict_is_not_retried_once_its_time_is_up(on, monkeypatch):
    kind, error = CONFLICTS["a locked SQLite database"]
    on(kind)
    operation, attempts = fail(9, error)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(database.time, "monotonic", lambda: next(clock))
    with pytest.raises(peewee.OperationalError):
        operation("argument")
    assert len(attempts) == 3  # at 2, 4 and 6 seconds, with 5 allowed


def test_a_part_of_a_transaction_is_not_retried_by_itself(app, monkeypatch):
    monkeypatch.setattr(database.db, "is_conflict", lambda error: True, raising=False)
    operation, attempts = fail(1, peewee.OperationalError())
    with pytest.raises(peewee.OperationalError), database.db.atomic():
        operation("argument")
    assert len(attempts) == 1


def test_two_uploads_that_wait_for_each_other_are_both_carried_out(app, monkeypatch):
    """Each changes the course that the other changes next; on SQLite, the second begins when the first has ended."""
    monkeypatch.setattr(models, "BATCH", 1)
    meeting = threading.Barrier(1 if SQLITE else 2, timeout=10)
    met = threading.local()

    def meet(items):
        for number, item in enumerate(items):
            if number == 1 and database.db.in_transaction() and not hasattr(met, "once"):
                met.once = True
                with contextlib.suppress(threading.BrokenBarrierError):
                    meeting.wait()
            yield item

    def upload(codes, instructor):
        courses = [{"code": code, "name": "Shared", "instructor": instructor} for code in codes]
        try:
            return Course.store_courses(courses, Mode.UPDATE, progress=meet).updated
        finally:
            database.db.close()

    with concurrent.futures.ThreadPoolExecutor() as clients:
        counts = clients.map(upload, (("CSE115", "CSE465"), ("CSE465", "CSE115")), ("Ada", "Bob"))
        assert list(counts) == [2, 2]
    assert len({course["instructor"] for course in Course.get_all_courses()}) == 1


def run_together(*functions):
    """Run functions at the same time, each with a connection of its own; return what they return."""

    def run(function):
        try:
            return function()
        finally:
            database.db.close()

    with concurrent.futures.ThreadPoolExecutor(len(functions)) as threads:
        return list(threads.map(run, functions))


def test_a_replacement_loses_no_change_that_is_made_at_the_same_time(app):
    """Courses are added while the list is replaced again and again, under the condition that it has not changed."""
    added, replaced = [f"NEW {number}" for number in range(20)], []

    def add():
        for code in added:
            Course.add_course(code, "Ada", "Added meanwhile")

    def replace():
        for number in range(20):
            _, old, _ = Course.get_page()
            rows = [{name: row[name] for name in ("code", "name")} for row in json.loads(old)]
            rows += [{"code": f"LIST {number}", "name": "Replaced"}]
            stored = Course.store_courses(rows, Mode.REPLACE, old=old)
            replaced.extend([rows[-1]["code"]] if stored else [])

    run_together(add, replace)
    assert {row["code"] for row in Course.get_all_courses()} == {"CSE115", "CSE465", *added, *replaced}


def test_codes_that_are_taken_at_the_same_time_are_skipped(app):
    rows = [{"code": f"C {number}", "name": "Shared"} for number in range(300)]
    stored = run_together(*(lambda: Course.store_courses(rows, Mode.SKIP) for _ in range(3)))
    assert sum(one.created for one in stored) == 300
    assert sum(len(one.taken) for one in stored) == 600


def test_two_replacements_at_the_same_time_leave_one_of_their_lists(app):
    lists = [[{"code": f"{letter} {number}", "name": "a"} for number in range(300)] for letter in "AB"]
    run_together(*(lambda rows=rows: Course.store_courses(rows, Mode.REPLACE) for rows in lists))
    assert {row["code"][0] for row in Course.get_all_courses()} in ({"A"}, {"B"})
    assert len(Course.get_all_courses()) == 300
