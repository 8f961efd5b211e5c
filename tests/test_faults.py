"""Faults of the disk and the database: a clear stop at start or a clear 503, and service again when they are over."""

import ctypes
import os
import sqlite3
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.sqlite

NEW = {"code": "CSE225", "name": "Data structures", "instructor": "Ada Lovelace"}
DROP_FROM_BOUNDING_SET, DAC_OVERRIDE = 24, 1  # prctl(2), capabilities(7)


def obey_permissions():
    """Let even root be stopped by a file's permissions."""
    ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, DAC_OVERRIDE, 0, 0, 0)


def start_in_vain(folder, **settings):
    """Run the API, which stops at once, and return its one line."""
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{folder}/courses.db", "PORT": "0"} | settings
    command = [sys.executable, ROOT / "course_api.py"]
    done = subprocess.run(
        command, env=environment, cwd=folder, preexec_fn=obey_permissions, capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "Serving" not in done.stdout
    return done.stderr


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    folder.chmod(0o555)
    assert "cannot be used: unable to open database file; check DATABASE_URL" in start_in_vain(folder)


def test_a_database_that_cannot_be_written_stops_the_start(run, tmp_path):
    run("seed.py")
    (tmp_path / "courses.db").chmod(0o444)
    assert "courses.db cannot" in start_in_vain(tmp_path)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be one" * 100, b"SQLite format 3\0" * 300]
)
def test_a_file_that_is_no_database_stops_the_start(tmp_path, content):
    (tmp_path / "courses.db").write_bytes(content)
    assert "courses.db cannot be used:" in start_in_vain(tmp_path)
    assert (tmp_path / "courses.db").read_bytes() == content


def test_a_database_that_breaks_is_unavailable_until_it_is_mended(run, start, tmp_path):
    run("seed.py")
    api, file = start(), tmp_path / "courses.db"
    bearer = "Bearer " + api.log_in()
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    sound = file.read_bytes()
    file.write_bytes(sound[:100] + b"\xff" * (len(sound) - 100))
    statuses = {api.request("/courses", Authorization=bearer)[0] for _ in range(8)}
    assert statuses <= {200, 503} and 503 in statuses
    api.wait_for("the database does not answer: ")
    file.write_bytes(sound)
    assert api.request("/courses/CSE115", Authorization=bearer)[0] == 200
    assert api.request("/courses", "POST", NEW, Authorization=bearer)[0] == 201


def test_a_database_that_is_taken_away_and_comes_back_is_used_again(run, start, tmp_path):
    run("seed.py")
    api = start()
    bearer = "Bearer " + api.log_in()
    with sqlite3.connect(tmp_path / "courses.db") as connection:
        connection.execute("ALTER TABLE courses RENAME TO away")
        assert api.request("/courses", Authorization=bearer)[0] == 503
        connection.execute("ALTER TABLE away RENAME TO courses")
    connection.close()
    assert api.request("/courses", Authorization=bearer)[0] == 200


# -- Backup ------------------------------------------------------------------------------------------------------------


def test_a_backup_is_a_whole_copy_of_a_database_in_use(run, start, tmp_path):
    run("seed.py")
    api = start()
    bearer = "Bearer " + api.log_in()
    assert api.request("/courses", "POST", NEW, Authorization=bearer)[0] == 201
    done = run("seed.py", "backup", "copy.db")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "Copied the database to copy.db.")
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    copy.close()
    other = start(DATABASE_URL=f"sqlite:///{tmp_path}/copy.db")
    assert other.request("/courses/CSE225", Authorization=bearer)[0] == 200
    assert other.log_in()


def test_a_backup_that_cannot_be_written_is_one_line(run, tmp_path):
    run("seed.py")
    (tmp_path / "notes.txt").write_text("not a database " * 100)
    for file in ("nowhere/copy.db", "notes.txt", "courses.db", ""):
        done = run("seed.py", "backup", file)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert (tmp_path / "notes.txt").read_text() == "not a database " * 100


def test_a_backup_of_a_database_that_is_not_there_makes_none(run, tmp_path):
    done = run("seed.py", "backup", "copy.db")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert list(tmp_path.iterdir()) == []


# -- Secrets -----------------------------------------------------------------------------------------------------------


def test_no_log_at_any_level_has_a_secret(run, start, tmp_path):
    run("seed.py")
    run("seed.py", "user", "grace", stdin="a-secret-password\n")
    api = start(LOG_LEVEL="DEBUG", SECRET_KEY="a-secret-key-of-more-than-32-bytes")
    login = {"username": "grace", "password": "a-secret-password"}
    token = api.request("/login", "POST", login)[1]
    secrets = {"a-secret-password", "a-wrong-secret", token, token.split(".")[2], "a-secret-key", "$argon2id$"}
    api.request("/login", "POST", login | {"password": "a-wrong-secret"})
    api.request("/login?password=a-wrong-secret", "POST", login | {"password": 5})
    for path in ("/courses", "/courses/unknown", "/nowhere", "/courses/%FF", "/courses?limit=0"):
        api.request(path, Authorization=f"Bearer {token}")
        api.request(f"{path}{'&' if '?' in path else '?'}token={token}")
    api.request("/courses", "POST", NEW, Authorization=f"Bearer {token}")
    with sqlite3.connect(tmp_path / "courses.db") as connection:
        connection.execute("ALTER TABLE users RENAME TO away")
    connection.close()
    assert api.request("/login", "POST", login)[0] == 503
    api.process.terminate()
    assert api.wait() == 0
    log = "\n".join(api.output)
    assert log.count(" INFO 127.0.0.1 ") == 15
    assert [secret for secret in secrets if secret in log] == []
