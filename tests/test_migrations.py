"""Databases of earlier releases, of newer ones, and of the tutorial."""

import contextlib
import shutil
import sqlite3
import unicodedata

import peewee
import pytest
from catalogue import course, make_csv, printed_csv
from playhouse import db_url
from playhouse.migrations import Runner
from processes import SQLITE, database_url, refused
from servers import ask_at_once

import database
import models
from database import MIGRATIONS

STEPS = sorted(path.stem for path in MIGRATIONS.glob("*.py"))


@contextlib.contextmanager
def connected(folder):
    """A connection to the database that `run` and `start` use."""
    database = db_url.connect(database_url(folder))
    with database.connection_context():
        yield database


def history(folder):
    with connected(folder) as database:
        return sorted(Runner(database, MIGRATIONS).applied())


# -- The first release -------------------------------------------------------------------------------------------------


def make_first_release(folder):
    """Make a database as the first release made it, which kept no history of its schema."""
    with connected(folder) as database:
        Runner(database, MIGRATIONS).up(STEPS[0])
        database.execute_sql("DROP TABLE schema_migration")
        database.execute_sql(
            "INSERT INTO courses (code, name, instructor) VALUES ('a', 'Old', 'Grace'), ('B', 'x', 'y')"
        )
        insert = f"INSERT INTO users (username, password) VALUES ('grace', {database.param})"
        database.execute_sql(insert, (models.HASHER.hash("hopper"),))


def test_a_database_of_the_first_release_is_brought_up_to_date(run, tmp_path):
    make_first_release(tmp_path)
    with connected(tmp_path) as database:
        database.execute_sql("INSERT INTO signing_key (id, value) VALUES (1, 'kept')")
        before = database.execute_sql("SELECT username, password FROM users").fetchall()
    assert run("seed.py", "import", "-", stdin="code,name,instructor\nb,x,\nA,x,y\n").returncode == 0
    courses = [("a", "Old", "Grace"), ("B", "x", "y"), ("b", "x", ""), ("A", "x", "y")]
    assert run("seed.py", "export", "-").stdout == printed_csv(*(course(*fields) for fields in courses))
    assert history(tmp_path) == STEPS
    with connected(tmp_path) as database:
        assert database.execute_sql("SELECT username, password FROM users").fetchall() == before
        assert database.execute_sql("SELECT id, value FROM signing_key").fetchone() == (1, "kept")
        database.execute_sql("UPDATE courses SET id = 5000000000 WHERE code = 'a'")
        ordered = database.execute_sql("SELECT code FROM courses ORDER BY code").fetchall()
        database.execute_sql("INSERT INTO users (username, password) VALUES ('alan', 'as a release before inserts')")
    assert [code for (code,) in ordered] == ["A", "B", "a", "b"]
    assert run("seed.py", "users").stdout.startswith("grace\teditor\nalan\teditor\n")


@pytest.mark.sqlite
def test_restore_brings_a_backup_of_the_first_release_up_to_date(run, seeded, tmp_path):
    (tmp_path / "old").mkdir()
    make_first_release(tmp_path / "old")
    before = (tmp_path / "old/courses.db").read_bytes()
    assert run("seed.py", "restore", "old/courses.db").stdout.endswith("now has 2 courses and 1 user\n")
    assert run("seed.py", "users").stdout.startswith("grace\teditor\n")
    assert history(tmp_path) == STEPS
    assert (tmp_path / "old/courses.db").read_bytes() == before


@pytest.mark.parametrize("make", [make_first_release, database_url], ids=["first release", "new"])
def test_copies_that_start_at_once_bring_a_database_up_to_date_once_and_agree_on_the_key(run, start, tmp_path, make):
    make(tmp_path)
    copies = ask_at_once(lambda _: start(), 4)
    assert history(tmp_path) == STEPS
    assert run("seed.py").returncode == 0
    bearer = copies[0].bearer()
    assert [copy.request("/courses", **bearer)[0] for copy in copies] == [200] * 4


def test_a_program_that_imports_the_api_can_prepare_a_new_database(run, tmp_path):
    (tmp_path / "program.py").write_text("import course_api\ncourse_api.database.init_db()\n")
    assert run(tmp_path / "program.py").returncode == 0
    assert history(tmp_path) == STEPS


def test_keys_that_an_older_backup_does_not_know_end_with_its_restore(run, tmp_path):
    """MariaDB's dump replaces the tables that it has, and leaves the others; its users may have other numbers."""
    assert run("seed.py", "user", "grace", stdin="hopper 1906").returncode == 0
    assert run("seed.py", "key", "grace", "script").returncode == 0
    with connected(tmp_path) as database:
        database.execute_sql("ALTER TABLE users DROP COLUMN stamp")
        database.execute_sql("DELETE FROM schema_migration WHERE name = '0004_accounts'")
    assert run("seed.py", "keys").stdout.startswith("There are no keys.\n")


# -- Newer releases, and steps that fail -------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["seed.py", "course_api.py"])
def test_a_database_of_a_newer_version_is_left_alone(run, tmp_path, program):
    with connected(tmp_path) as database:
        runner = Runner(database, MIGRATIONS)
        runner.up()
        runner.History.create(name="0999_later")
    refused = run(program)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "created by a newer version (0999_later); upgrade, or restore a backup" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_step_that_fails_leaves_everything_as_it_was(app, monkeypatch, tmp_path):
    steps = shutil.copytree(MIGRATIONS, tmp_path / "migrations")
    steps.joinpath("0998_bad.py").write_text(
        """def up(migrator, db):
    db.execute_sql("CREATE TABLE half_done (id INTEGER)")
    db.execute_sql("SELECT nonsense")
"""
    )
    monkeypatch.setattr(database, "MIGRATIONS", str(steps))
    with pytest.raises(SystemExit, match=r"cannot use the database .*nonsense"), database.exit_if_unusable():
        database.init_db()
    final = isinstance(database.db, peewee.MySQLDatabase)  # has no transactions for this
    assert database.db.table_exists("half_done") == final
    database.db.execute_sql("DROP TABLE IF EXISTS half_done")
    assert sorted(Runner(database.db, steps).applied()) == STEPS


# -- The tutorial ------------------------------------------------------------------------------------------------------

PASSWORDS = {
    "faisal": "faisal",
    "grace": "hopper 1906-1992",
    "alan": "$argon2id$ is no hash",
    "émilie": "du Châtelet 物",
    "n" * 10: "p" * 80,
    "Zoe\u0308": "e\u0301clair 1863",  # not in NFC
    " ada ": "lovelace",
}
ID = {"sqlite": "INTEGER NOT NULL", "postgresql": "SERIAL NOT NULL", "mysql": "INTEGER NOT NULL AUTO_INCREMENT"}


def make_tutorial(folder):
    """Make a database as the tutorial's SQLAlchemy makes it, with plain-text passwords; many users are deleted."""
    number = ID[database_url(folder).partition(":")[0]]
    unicode = " DEFAULT CHARSET utf8mb4" if number == ID["mysql"] else ""
    with connected(folder) as database:
        database.execute_sql(f"""CREATE TABLE courses (id {number}, code VARCHAR(5) NOT NULL,
            instructor VARCHAR(120) NOT NULL, name VARCHAR(120) NOT NULL, PRIMARY KEY (id), UNIQUE (code)){unicode}""")
        database.execute_sql(f"""CREATE TABLE users (id {number}, username VARCHAR(10) NOT NULL,
            password VARCHAR(80) NOT NULL, PRIMARY KEY (id), UNIQUE (username)){unicode}""")
        database.execute_sql(
            "INSERT INTO courses (code, instructor, name) VALUES ('CSE11', 'Ada', 'Algebra'), ('CSE46', '', 'Logic')"
        )
        insert = f"INSERT INTO users (username, password) VALUES ({database.param}, {database.param})"
        if SQLITE:
            database.execute_sql("PRAGMA secure_delete = OFF")  # SQLite's own default, but not Debian's
        deleted = [(f"deleted{number}", "turing 1912-1954") for number in range(300)]  # they fill pages of their own
        with database.atomic():
            for username, password in [*PASSWORDS.items(), *deleted]:
                database.execute_sql(insert, (username, password))
        database.execute_sql("DELETE FROM users WHERE username LIKE 'deleted%%'")


def test_users_of_the_tutorials_database_log_in_with_the_same_passwords(run, start, tmp_path):
    make_tutorial(tmp_path)
    api = start()
    for username, password in PASSWORDS.items():
        api.log_in(username, password)
        api.log_in(*(unicodedata.normalize("NFD", text) for text in (username, password)))
    _, courses = api.request("/courses?token=" + api.log_in())
    assert '"CSE11"' in courses and '"Logic"' in courses
    assert api.request("/login", "POST", {"username": "grace", "password": "hopper 1906"})[0] == 400
    with connected(tmp_path) as database:
        stored = [password for (password,) in database.execute_sql("SELECT password FROM users")]
        database.execute_sql("INSERT INTO users (username, password) VALUES ('bob', 'as the tutorial inserts')")
    assert all(password.startswith("$argon2id$v=19$m=19456,t=2,p=1$") for password in stored)
    assert len(set(stored)) == len(PASSWORDS)
    long = course("C" * 20, "n" * 120, "i" * 120)
    assert run("seed.py", "import", "-", stdin=make_csv(long)).returncode == 0
    assert run("seed.py", "user", "u" * 80, stdin="long enough").returncode == 0
    old = course("CSE11", "Algebra", "Ada"), course("CSE46", "Logic", "")
    assert run("seed.py", "export", "-").stdout == printed_csv(*old, long)
    assert history(tmp_path) == STEPS


SECRETS = [password.encode() for password in PASSWORDS.values() if password != "faisal"] + [b"turing 1912-1954"]


def find(texts, folder):
    """Return which of these texts are in the files of a folder."""
    contents = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    return {text for text in texts if text in contents}


@pytest.mark.sqlite
@pytest.mark.parametrize("open_meanwhile", [False, True])
def test_no_plain_text_password_stays_in_a_file_of_the_tutorials_database(start, tmp_path, open_meanwhile):
    """Not even while the API runs, or after it was killed."""
    make_tutorial(tmp_path)
    assert find(SECRETS, tmp_path) == {*SECRETS}
    with connected(tmp_path) if open_meanwhile else contextlib.nullcontext() as database:
        if open_meanwhile:
            database.execute_sql("SELECT * FROM users").fetchall()
        api = start()
        assert find(SECRETS, tmp_path) == set()
        api.close()  # kills it
    assert find(SECRETS, tmp_path) == set()
    assert find([b"$argon2id$"], tmp_path)


@pytest.mark.sqlite
def test_a_scrub_that_fails_stops_the_start_and_is_tried_again_at_the_next(run, start, tmp_path):
    """Another program reads what was there before, and so keeps the old pages in the file."""
    make_tutorial(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "courses.db", isolation_level=None)) as reader:
        reader.execute("PRAGMA journal_mode = wal")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM users").fetchall()
        line = refused(run("course_api.py", PORT="0"))
        assert "another program keeps reading, so that deleted passwords stay in the file" in line
        assert history(tmp_path) == STEPS and find(SECRETS, tmp_path) == {*SECRETS}
        reader.execute("COMMIT")
        start()
        assert find(SECRETS, tmp_path) == set()


def test_a_scrub_that_fails_is_owed_and_one_that_succeeds_is_not_repeated(app, monkeypatch):
    scrubs = []

    def scrub(fails):
        scrubs.append(fails)
        if fails:
            raise peewee.OperationalError("the disk is full")

    database.db.execute_sql(database.db.write_mark.format(0))
    for fails in (True, False, False):
        monkeypatch.setattr(database.db, "scrub", lambda fails=fails: scrub(fails))
        with pytest.raises(peewee.OperationalError) if fails else contextlib.nullcontext():
            database.init_db()
    assert scrubs == [True, False]
