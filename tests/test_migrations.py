"""Databases of earlier and of newer releases."""

import concurrent.futures
import contextlib
import pathlib
import shutil

import peewee
import pytest
from conftest import database_url
from playhouse import db_url
from playhouse.migrations import Runner

import models

STEPS = sorted(path.stem for path in pathlib.Path(models.MIGRATIONS).glob("*.py"))


@contextlib.contextmanager
def connected(folder):
    """A connection to the database that `run` and `start` use."""
    database = db_url.connect(database_url(folder))
    with database.connection_context():
        yield database


def make_old_database(folder):
    """Make a database as the first release made it, which kept no history of its schema."""
    with connected(folder) as database:
        Runner(database, models.MIGRATIONS).up(STEPS[0])
        database.execute_sql("DROP TABLE schema_migration")
        database.execute_sql(
            "INSERT INTO courses (code, name, instructor) VALUES ('a', 'Old', 'Grace'), ('B', 'x', 'y')"
        )


def history(folder):
    with connected(folder) as database:
        return sorted(Runner(database, models.MIGRATIONS).applied())


def test_a_database_of_the_first_release_is_brought_up_to_date(run, tmp_path):
    make_old_database(tmp_path)
    assert run("seed.py", "import", "-", stdin="code,name,instructor\nb,x,y\nA,x,y\n").returncode == 0
    exported = run("seed.py", "export", "-").stdout
    assert exported.splitlines()[1:] == ["a,Old,Grace", "B,x,y", "b,x,y", "A,x,y"]
    with connected(tmp_path) as database:
        database.execute_sql("UPDATE courses SET id = 5000000000 WHERE code = 'a'")
        ordered = database.execute_sql("SELECT code FROM courses ORDER BY code").fetchall()
    assert [code for (code,) in ordered] == ["A", "B", "a", "b"]
    assert history(tmp_path) == STEPS


def test_copies_that_start_at_once_bring_a_database_up_to_date_once(start, tmp_path):
    make_old_database(tmp_path)
    with concurrent.futures.ThreadPoolExecutor() as starters:
        copies = [copy.result() for copy in [starters.submit(start) for _ in range(4)]]
    assert [copy.request("/health")[0] for copy in copies] == [200] * 4
    assert sum("0002" in line for copy in copies for line in copy.output) == 1
    assert history(tmp_path) == STEPS


@pytest.mark.parametrize("program", ["seed.py", "course_api.py"])
def test_a_database_of_a_newer_release_is_left_alone(run, tmp_path, program):
    run("seed.py")
    with connected(tmp_path) as database:
        Runner(database, models.MIGRATIONS).History.create(name="0999_later")
    refused = run(program)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is of a newer release, with 0999_later: use that, or a backup" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_step_that_fails_leaves_everything_as_it_was(monkeypatch, tmp_path):
    steps = shutil.copytree(models.MIGRATIONS, tmp_path / "migrations")
    steps.joinpath("0003_bad.py").write_text(
        """def up(migrator, db):
    db.execute_sql("CREATE TABLE half_done (id INTEGER)")
    db.execute_sql("SELECT nonsense")
"""
    )
    monkeypatch.setattr(models, "MIGRATIONS", str(steps))
    with pytest.raises(SystemExit, match=r"the database .* cannot be used: .*nonsense.*"):
        models.prepare()
    final = isinstance(models.database, peewee.MySQLDatabase)  # has no transactions for this
    assert models.database.table_exists("half_done") == final
    models.database.execute_sql("DROP TABLE IF EXISTS half_done")
    assert sorted(Runner(models.database, steps).applied()) == STEPS
