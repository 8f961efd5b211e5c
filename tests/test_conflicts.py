"""What another client's deadlock or lock has undone is retried for a few seconds, where that is safe."""

import concurrent.futures
import contextlib
import threading

import peewee
import pytest
from processes import SQLITE

import models
from models import Course, database


class PostgresError(Exception):
    def __init__(self, pgcode):
        super().__init__(pgcode)
        self.pgcode = pgcode


Operational = peewee.OperationalError
CONFLICTS = {
    "a serialization failure": Operational(PostgresError("40001"), "could not serialize access"),
    "a deadlock in PostgreSQL": Operational(PostgresError("40P01"), "deadlock detected"),
    "a deadlock in MariaDB": Operational(1213, "Deadlock found when trying to get lock"),
    "a changed row in MariaDB": Operational(1020, "Record has changed since last read"),
    "a locked SQLite database": Operational("database is locked"),
    "a locked table in memory": Operational("database table is locked"),
}
FAULTS = {
    "a timeout": Operational(PostgresError("57014"), "canceling statement due to statement timeout"),
    "a lost connection": Operational(2013, "Lost connection to server during query"),
    "a full disk": Operational("database or disk is full"),
    "a taken code": peewee.IntegrityError("UNIQUE constraint failed: courses.code"),
}


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that retries would have paused; no test waits for them."""
    seconds = []
    monkeypatch.setattr(models.time, "sleep", seconds.append)
    return seconds


def fail(times, error):
    """Return an operation that fails so many times, and the list of its attempts."""
    attempts = []

    @models.retry_conflicts
    def operation(argument):
        attempts.append(argument)
        if len(attempts) <= times:
            raise error
        return "done"

    return operation, attempts


@pytest.mark.parametrize("error", CONFLICTS.values(), ids=CONFLICTS)
def test_a_conflict_is_retried_after_a_random_pause(error, pauses):
    operation, attempts = fail(9, error)
    assert operation("argument") == "done"
    assert attempts == ["argument"] * 10
    assert len(set(pauses)) > 1 and min(pauses) > 0 and max(pauses) < 1


@pytest.mark.parametrize("error", FAULTS.values(), ids=FAULTS)
def test_any_other_fault_is_not_retried(error):
    operation, attempts = fail(1, error)
    with pytest.raises(type(error)):
        operation("argument")
    assert len(attempts) == 1


def test_a_conflict_is_not_retried_once_its_time_is_up(monkeypatch):
    operation, attempts = fail(9, CONFLICTS["a locked SQLite database"])
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(models.time, "monotonic", lambda: next(clock))
    with pytest.raises(peewee.OperationalError):
        operation("argument")
    assert len(attempts) == 3  # at 2, 4 and 6 seconds, with 5 allowed


def test_a_part_of_a_transaction_is_not_retried_by_itself(app):
    operation, attempts = fail(1, CONFLICTS["a deadlock in PostgreSQL"])
    with pytest.raises(peewee.OperationalError), database.atomic():
        operation("argument")
    assert len(attempts) == 1


def test_two_uploads_that_wait_for_each_other_are_both_carried_out(app, monkeypatch):
    """Each changes the course that the other changes next; on SQLite, the second begins when the first has ended."""
    monkeypatch.setattr(models, "BATCH", 1)
    monkeypatch.setattr(database, "statement_limit", "", raising=False)  # else a slow machine meets it first
    meeting = threading.Barrier(1 if SQLITE else 2, timeout=10)
    met = threading.local()

    def meet(items):
        for number, item in enumerate(items):
            if number == 1 and database.in_transaction() and not hasattr(met, "once"):
                met.once = True
                with contextlib.suppress(threading.BrokenBarrierError):
                    meeting.wait()
            yield item

    def upload(codes, instructor):
        rows = {code: {"code": code, "name": "Shared", "instructor": instructor} for code in codes}
        try:
            return Course.add_courses(rows, update=True, watch=meet)
        finally:
            database.close()

    with concurrent.futures.ThreadPoolExecutor() as clients:
        counts = clients.map(upload, (("CSE115", "CSE465"), ("CSE465", "CSE115")), ("Ada", "Bob"))
        assert list(counts) == [(0, 2, 0), (0, 2, 0)]
    assert len({course["instructor"] for course in Course.get_all_courses()}) == 1
