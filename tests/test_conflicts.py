"""What another client undoes is tried again, a few times, where that is safe."""

import concurrent.futures
import contextlib
import threading

import peewee
import pytest

import models
from models import Course, database


class PostgresError(Exception):
    def __init__(self, pgcode):
        super().__init__("it cannot be done now")
        self.pgcode = pgcode


CONFLICTS = {
    "a serialization failure": peewee.OperationalError(PostgresError("40001"), "could not serialize access"),
    "a deadlock of PostgreSQL's": peewee.OperationalError(PostgresError("40P01"), "deadlock detected"),
    "a deadlock of MariaDB's": peewee.OperationalError(1213, "Deadlock found when trying to get lock"),
    "a lock of SQLite's": peewee.OperationalError("database is locked"),
}
FAULTS = {
    "a timeout": peewee.OperationalError(PostgresError("57014"), "canceling statement due to statement timeout"),
    "a lost connection": peewee.OperationalError(2013, "Lost connection to server during query"),
    "a full disk": peewee.OperationalError("database or disk is full"),
    "a taken code": peewee.IntegrityError("UNIQUE constraint failed: courses.code"),
}


def fail(times, error):
    """Return an operation that fails so many times, and the list of its attempts."""
    attempts = []

    def operation():
        attempts.append(len(attempts))
        if len(attempts) <= times:
            raise error
        return "done"

    return models.retried(operation), attempts


@pytest.mark.parametrize("error", CONFLICTS.values(), ids=CONFLICTS)
def test_a_conflict_is_tried_again(error):
    operation, attempts = fail(3, error)
    assert operation() == "done"
    assert len(attempts) == 4


@pytest.mark.parametrize("error", CONFLICTS.values(), ids=CONFLICTS)
def test_a_conflict_that_stays_is_given_up(error):
    operation, attempts = fail(100, error)
    with pytest.raises(peewee.OperationalError):
        operation()
    assert len(attempts) == 10


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_any_other_fault_is_not_tried_again(error):
    operation, attempts = fail(1, error)
    with pytest.raises(type(error)):
        operation()
    assert len(attempts) == 1


def test_a_part_of_a_transaction_is_not_tried_again_by_itself():
    operation, attempts = fail(1, CONFLICTS["a deadlock of PostgreSQL's"])
    with pytest.raises(peewee.OperationalError), database.atomic():
        operation()
    assert len(attempts) == 1


def test_two_imports_that_wait_for_each_other_are_both_carried_out(app, monkeypatch):
    """Each has changed the course that the other one wants next; SQLite lets the second begin only when it can end."""
    monkeypatch.setattr(models, "BATCH", 1)
    meeting = threading.Barrier(2, timeout=1)

    def meet(courses):
        for number, course in enumerate(courses):
            if number == 1 and not isinstance(course, dict):
                with contextlib.suppress(threading.BrokenBarrierError):
                    meeting.wait()
            yield course

    def add(codes, instructor):
        rows = [{"code": code, "name": "Shared", "instructor": instructor} for code in codes]
        try:
            return Course.add_courses(rows, update=True, watch=meet)
        finally:
            database.close()

    with concurrent.futures.ThreadPoolExecutor() as clients:
        imports = [clients.submit(add, *its) for its in ((("CSE115", "CSE465"), "Ada"), (("CSE465", "CSE115"), "Bob"))]
        assert [done.result() for done in imports] == [2, 2]
    assert len({course["instructor"] for course in Course.get_all_courses()}) == 1
