"""seed.py, run as its users run it."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading

import pytest
from conftest import ROOT, database_url


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
    environment = os.environ | {"DATABASE_URL": database_url(tmp_path)}
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
    for command in ("user NAME", "import FILE", "export FILE", "random N"):
        assert f"python seed.py {command}" in done.stdout


# -- Courses -----------------------------------------------------------------------------------------------------------

CATALOGUE = (
    "code,name,instructor\n"
    'AAS 100,Intro Asian American Studies,"Geng, Zhe"\n'
    'MATH&151,"Calculus ""I""",Noether\n'
    "ÉCO 1,物理,Ørsted\n"
)


@pytest.fixture
def catalogue(tmp_path):
    (tmp_path / "catalogue.csv").write_text(CATALOGUE, newline="\r\n")
    return "catalogue.csv"


def export(run, **settings):
    done = run("seed.py", "export", "-", **settings)
    assert done.returncode == 0
    return done.stdout


def test_import_adds_the_courses_of_csv_and_says_how_many(run, catalogue):
    done = run("seed.py", "import", catalogue)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "Added 3 courses."
    assert done.stdout.splitlines()[1].endswith("now has: 3 courses, 0 users")


@pytest.mark.parametrize("name", ["out.csv", "out.json"])
def test_what_export_writes_import_takes_back_unchanged(run, catalogue, tmp_path, name):
    run("seed.py", "import", catalogue)
    assert run("seed.py", "export", name).stderr.startswith(f"Wrote 3 courses to {name}.\n")
    other = {"DATABASE_URL": database_url(tmp_path, "other")}
    assert run("seed.py", "import", name, **other).returncode == 0
    assert run("seed.py", "export", "again.csv", **other).returncode == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "catalogue.csv").read_bytes()


def test_import_takes_what_the_list_answers(run, start, tmp_path, catalogue):
    run("seed.py")
    run("seed.py", "import", catalogue)
    api = start()
    _, courses = api.request("/courses?token=" + api.log_in())
    other = {"DATABASE_URL": database_url(tmp_path, "other")}
    assert run("seed.py", "import", "-", stdin=courses, **other).stdout.startswith("Added 5 courses.")
    assert export(run, **other) == export(run)


def test_import_reads_standard_input(run):
    assert run("seed.py", "import", "-", stdin=CATALOGUE).stdout.startswith("Added 3 courses.")
    assert export(run) == CATALOGUE


def test_a_bad_file_changes_nothing_and_each_bad_line_is_named(run):
    run("seed.py")
    before = export(run)
    text = "code,name,instructor\n\nA,a,a\nB,b,\nA,c,c\nCSE115,d,d\n" + "E,,\n" * 150
    done = run("seed.py", "import", "-", stdin=text)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 154)
    assert lines[:3] == [
        "line 4: instructor must be 1 to 120 characters, with no control characters",
        "line 5: Course code A is in row 1 too",
        "line 6: Course code CSE115 is in the courses already",
    ]
    assert lines[-2].startswith("line 156: name must be")
    assert lines[-1] == "nothing was stored; rows refused: 153"
    assert export(run) == before


def test_the_bad_courses_of_json_are_named_by_their_number(run):
    done = run("seed.py", "import", "-", stdin='[{"code": "A", "name": "a", "instructor": "a"}, 5, {}]')
    assert done.stderr.splitlines()[:2] == [
        "course 2: a course must be an object",
        "course 3: course code must be provided",
    ]


def test_update_changes_the_courses_that_exist(run):
    run("seed.py")
    text = "code,name,instructor\nCSE465,Networks,Grace Hopper\nCSE225,Data structures,Ada\n"
    assert run("seed.py", "import", "-", "--update", stdin=text).stdout.startswith("Added 1 courses, changed 1.\n")
    assert export(run).splitlines()[2:] == text.splitlines()[1:]
    assert run("seed.py", "import", "-", "--update", stdin=text + "CSE225,Again,Ada\n").returncode == 1


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "{}", '{"courses": 5}', "[1", '{"courses": [', "[" * 10**5])
def test_what_is_no_catalogue_is_refused_with_one_line(run, text):
    done = run("seed.py", "import", "-", stdin=text)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_file_that_is_missing_is_named(run):
    assert "nowhere.csv" in run("seed.py", "import", "nowhere.csv").stderr


def test_random_courses_are_the_same_for_the_same_seed(run, start, tmp_path):
    def make(name, *arguments):
        url = {"DATABASE_URL": database_url(tmp_path, name)}
        assert run("seed.py", "random", *arguments, **url).stdout.startswith("Added 500 courses.\n")
        return export(run, **url)

    first = make("a", "500")
    assert first == make("b", "500") == make("c", "500", "--seed", "1")
    assert first != make("d", "500", "--seed", "2")
    assert len(make("a", "500").splitlines()) == 1001


def test_a_progress_bar_shows_at_a_terminal_only(tmp_path):
    terminal, stderr = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # lines and columns
    environment = os.environ | {"DATABASE_URL": database_url(tmp_path)}
    command = [sys.executable, ROOT / "seed.py", "random", "2000"]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr, check=True, timeout=30)
    os.close(stderr)
    shown = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "0/2000" in shown and "courses/s" in shown


@pytest.mark.sqlite
def test_a_database_that_cannot_be_used_is_one_line(run):
    done = run("seed.py", DATABASE_URL="sqlite:////nowhere/courses.db")
    assert done.returncode == 1
    assert done.stderr == (
        "the database sqlite:////nowhere/courses.db cannot be used: unable to open database file; check DATABASE_URL\n"
    )
