"""Errors as the databases' drivers raise them, wrapped by Peewee, and ways to provoke them."""

import contextlib
import sqlite3

import peewee

import database


class DriverError(Exception):
    pass


def sqlite_error(name, message=""):
    """Return SQLite's error with the result code SQLITE_ and this name."""
    error = DriverError(message)
    error.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    return peewee.OperationalError(error, message)


def postgres_error(state):
    """Return PostgreSQL's error with this SQLSTATE."""
    error = DriverError(state)
    error.pgcode = state
    return peewee.OperationalError(error, state)


@contextlib.contextmanager
def constraint(condition):
    """Let the database refuse, for the block, new courses for which a condition does not hold."""
    if isinstance(database.db, peewee.SqliteDatabase):
        condition = condition.replace("name", "NEW.name")
        database.db.execute_sql(
            f"CREATE TRIGGER guard BEFORE INSERT ON courses WHEN NOT ({condition}) "
            "BEGIN SELECT RAISE(ABORT, 'courses.code is guarded by another program'); END"
        )
        remove = "DROP TRIGGER guard"
    else:
        database.db.execute_sql(f"ALTER TABLE courses ADD CONSTRAINT guard CHECK ({condition})")
        remove = "ALTER TABLE courses DROP CONSTRAINT guard"
    try:
        yield
    finally:
        database.db.execute_sql(remove)
