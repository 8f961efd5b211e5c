"""seed.py, run as its users run it."""

import os
import pty
import subprocess
import sys
import threading

import pytest
from conftest import ROOT


def test_the_seed_fills_an_empty_database_and_says_what_it_added(run, start):
    done = run("seed.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Added: course CSE115, course CSE465, user faisal"
    assert done.stdout.splitlines()[1].endswith("now has: 2 courses, 1 users")
    api = start()
    status, courses = api.request("/courses?token=" + api.log_in())
    assert status == 200
    assert "John stuart" in courses


def test_the_seed_can_be_run_again_without_harm(run, start):
    run("seed.py")
    run("seed.py", "user", "faisal", stdin="changed\n")
    api = start()
    api.request(
        "/courses/CSE115", "PATCH", {"name": "Changed"}, Authorization="Bearer " + api.log_in("faisal", "changed")
    )
    done = run("seed.py")
    assert done.stdout.splitlines()[0] == "Added: nothing, the dummy data is there"
    assert "Changed" in api.request("/courses?token=" + api.log_in("faisal", "changed"))[1]


def test_user_adds_a_user_with_a_password_from_standard_input(run, start):
    done = run("seed.py", "user", "grace", stdin="hopper 1906\r\nnot this line\n")
    assert done.stdout.startswith("Added the user grace.\n")
    start().log_in("grace", "hopper 1906")


def test_user_changes_the_password_of_a_user(run, start):
    run("seed.py", "user", "grace", stdin="old\n")
    done = run("seed.py", "user", "grace", stdin="new\n")
    assert done.stdout.startswith("Changed the password of grace.\n")
    api = start()
    api.log_in("grace", "new")
    assert api.request("/login", "POST", {"username": "grace", "password": "old"})[0] == 400


@pytest.mark.parametrize(
    ("name", "stdin", "error"),
    [("grace", "", "password must be"), ("grace", "\n", "password must be"), ("a\nb", "x\n", "username must be")],
)
def test_user_refuses_a_bad_name_or_password_with_one_line(run, name, stdin, error):
    done = run("seed.py", "user", name, stdin=stdin)
    assert done.returncode == 1
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("second", "status"), [("secret", 0), ("secrte", 1)])
def test_user_asks_twice_at_a_terminal_without_echo(tmp_path, second, status):
    terminal, stdin = pty.openpty()
    environment = os.environ | {"DATABASE_URL": f"sqlite:///{tmp_path}/courses.db"}
    command = [sys.executable, ROOT / "seed.py", "user", "grace"]
    process = subprocess.Popen(
        command, env=environment, stdin=stdin, stdout=stdin, stderr=stdin, start_new_session=True
    )
    os.close(stdin)
    shown = b""
    for line in ("secret", second):
        while not shown.endswith(b": "):
            shown += os.read(terminal, 1000)
        os.write(terminal, line.encode() + b"\n")
        shown += b"\n"
    output = []

    def read():
        try:
            while part := os.read(terminal, 1000):
                output.append(part)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(20) == status
    reader.join(20)
    os.close(terminal)
    shown += b"".join(output)
    assert b"secret" not in shown
    assert (b"Added the user grace" in shown) == (status == 0)
    assert (b"differ" in shown) == (status == 1)


def test_help_says_what_it_can_do(run):
    done = run("seed.py", "--help")
    assert done.returncode == 0
    assert "python seed.py user NAME" in done.stdout


def test_a_database_that_cannot_be_used_is_one_line(run):
    done = run("seed.py", DATABASE_URL="sqlite:////nowhere/courses.db")
    assert done.returncode == 1
    assert done.stderr == (
        "the database sqlite:////nowhere/courses.db cannot be used: unable to open database file; check DATABASE_URL\n"
    )
