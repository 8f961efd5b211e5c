"""seed.py, as its users run it: most commands within this process, and a process of its own where that matters."""

import contextlib
import fcntl
import io
import os
import pty
import re
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import termios
import time

import pytest
from catalogue import COURSE, CSE115, CSE465, EXPORT_HEADER, HEADER, NAME_RULE, course, insert_sql, make_csv
from processes import PYTHON, ROOT, database_url, run_bound

import database
import models
import seed
from models import Course, User


@pytest.fixture
def command(app, monkeypatch, tmp_path):
    """A function that runs a command within this process, in a folder of its own, on the database of `app`."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments, stdin=""):
        stdin = stdin if isinstance(stdin, bytes) else stdin.encode()
        files = {"stdin": io.BytesIO(stdin), "stdout": io.BytesIO(), "stderr": io.BytesIO()}
        status, on_interrupt = 0, signal.getsignal(signal.SIGINT)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["seed.py", *arguments])
            for name, file in files.items():
                patch.setattr(sys, name, io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True))
            try:
                seed.main()
            except SystemExit as error:  # with a sentence, which Python prints
                status = 1
                print(error, file=sys.stderr)
            finally:
                signal.signal(signal.SIGINT, on_interrupt)
            stdout, stderr = files["stdout"].getvalue().decode(), files["stderr"].getvalue().decode()
        return subprocess.CompletedProcess(arguments, status, stdout, stderr)

    return command


def tell(done):
    """Return the sentence with which a command has succeeded."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[0]


def fail(done):
    """Return the one line with which a command has failed."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    return done.stderr.rstrip("\n")


def test_the_seed_fills_an_empty_database_and_can_be_run_again(run):
    done = run("seed.py")
    assert tell(done) == "Added: course CSE115, course CSE465, user faisal"
    assert done.stdout.splitlines()[1].endswith("now has 2 courses and 1 user")
    assert tell(run("seed.py")) == "Added: nothing, the dummy data is already there"


@pytest.mark.sqlite
def test_the_banner_shows_the_whole_path_of_the_database(run, tmp_path):
    assert f"{tmp_path}/made.db now has 2 courses" in run("seed.py", DATABASE_URL="sqlite:///made.db").stdout


def test_help_lists_each_command_with_a_line(command):
    for name in ("users", "user", "keys", "key", "import", "export", "backup", "restore", "random"):
        assert re.search(rf"^ +{name} +\S+ \S+ \S+", command("--help").stdout, re.MULTILINE)


@pytest.mark.sqlite
def test_a_database_that_cannot_be_used_is_one_line(run):
    error = fail(run("seed.py", DATABASE_URL="sqlite:////nowhere/courses.db"))
    assert error.startswith("cannot use the database sqlite:////nowhere/courses.db: unable to open database file; ")
    assert "/nowhere" in error.partition("; ")[2]


# -- Users -------------------------------------------------------------------------------------------------------------


def list_users(command):
    *users, banner = command("users").stdout.splitlines()
    assert banner.endswith(f"and {len(users)} user" + ("s" if len(users) != 1 else ""))
    return dict(line.split("\t") for line in users)


def test_users_are_added_changed_listed_and_deleted(command):
    assert list_users(command) == {"faisal": "editor"}
    assert tell(command("user", "grace", stdin="\ufeffhopper 1906\r\nnot this line\n")) == "Added user grace."
    assert tell(command("user", " alan ", "--read-only", stdin="turing 1912")) == "Added user alan."
    assert list_users(command) == {"faisal": "editor", "grace": "editor", "alan": "read-only"}
    assert tell(command("user", "grace", "--read-only")) == "User grace may now only read."
    assert tell(command("user", "alan", "--no-read-only")) == "User alan may now read and write."
    assert list_users(command) == {"faisal": "editor", "grace": "read-only", "alan": "editor"}
    assert User.match_user("grace", "hopper 1906") and User.match_user("alan", "turing 1912")
    assert tell(command("user", "grace", stdin="new password\n")) == "Changed the password of user grace."
    assert list_users(command)["grace"] == "read-only"
    assert User.match_user("grace", "new password") and not User.match_user("grace", "hopper 1906")
    assert tell(command("user", "grace", "--delete")) == "Deleted user grace."
    assert list_users(command) == {"faisal": "editor", "alan": "editor"}


def test_a_name_that_the_console_cannot_show_is_shown_escaped(run):
    console = {"PYTHONIOENCODING": "cp1252"}
    assert tell(run("seed.py", "user", "李雷", stdin="long enough", **console)) == r"Added user \u674e\u96f7."
    assert r"\u674e\u96f7" in run("seed.py", "users", **console).stdout
    assert tell(run("seed.py", "user", "李雷", "--delete", **console)) == r"Deleted user \u674e\u96f7."


def test_a_user_is_the_same_in_any_form_of_unicode(command):
    composed, decomposed = "Zoë", "Zoe\u0308"
    assert tell(command("user", decomposed, stdin=f"{decomposed} 1234")) == f"Added user {composed}."
    assert tell(command("user", composed, "--read-only")) == f"User {composed} may now only read."
    for name, password in ((composed, decomposed), (decomposed, composed)):
        assert User.match_user(name, f"{password} 1234")


def test_keys_are_added_listed_and_deleted(command, run):
    assert tell(command("keys")) == "There are no keys."
    command("user", "grace", "--read-only", stdin="hopper 1906")
    added = command("key", "faisal", "nightly import", "--days", "30", "--read-only")
    assert re.fullmatch(r"key_[\w-]{43}\n", added.stdout)  # alone, so that it can go to a file
    assert added.stderr.startswith("Added key nightly import of user faisal. It is not shown again.\n")
    assert models.ApiKey.get_writer(added.stdout.strip()).username == "faisal"
    assert command("key", "faisal", "backup").stdout != command("key", "grace", "backup").stdout
    today, then = (time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * 86400)) for days in (0, 30))
    assert command("keys").stdout.splitlines()[:-1] == [
        f"faisal\tbackup\teditor\tcreated {today}\tnever expires",
        f"faisal\tnightly import\tread-only\tcreated {today}\texpires {then}",
        f"grace\tbackup\tread-only\tcreated {today}\tnever expires",
    ]
    deleted = command("key", "faisal", "nightly import", "--delete")
    assert (deleted.stdout, deleted.stderr.splitlines()[0]) == ("", "Deleted key nightly import of user faisal.")
    assert models.ApiKey.get_writer(added.stdout.strip()) is None
    assert command("keys").stdout.count("backup") == 2


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nobody", "cron"], "there is no user nobody; list them with: python seed.py users"),
        (["faisal", "cron"], "user faisal has a key cron already; delete it first, or choose another label"),
        (["faisal", "other", "--delete"], "user faisal has no key other"),
        (["faisal", "a\nb"], "label must be 1 to 80 characters, with no control characters"),
        (["faisal", "other", "--days", "99999999"], "a key is good for 36500 days at most, or, without --days, until"),
    ],
)
def test_a_bad_key_is_refused_with_one_line(command, arguments, error):
    command("key", "faisal", "cron")
    assert fail(command("key", *arguments)).startswith(error)
    assert models.ApiKey.select().count() == 1


@pytest.mark.parametrize(
    ("arguments", "stdin", "error"),
    [
        (["grace"], "", "the password must be 8 characters or more"),
        (["grace"], "\ufeff1234567\n", "the password must be 8 characters or more"),
        (["faisal"], "1234567\n12345678", "the password must be 8 characters or more"),
        (["grace"], b"\xff\xfel\0o\0n\0g\0 \0e\0n\0o\0u\0g\0h\0", "the password on standard input is not UTF-8 text"),
        (["a\nb"], "long enough\n", "username must be"),
        (["nobody", "--delete"], "", "there is no user nobody; list them with: python seed.py users"),
    ],
)
def test_a_bad_user_name_or_password_is_refused_with_one_line(command, arguments, stdin, error):
    assert fail(command("user", *arguments, stdin=stdin)).startswith(error)
    assert list_users(command) == {"faisal": "editor"}
    assert User.match_user("faisal", "faisal")


@pytest.mark.parametrize("role", ["--read-only", "--no-read-only"])
def test_a_user_is_not_deleted_by_a_command_that_also_sets_the_role(command, role):
    for options in (["--delete", role], [role, "--delete"]):
        assert "not allowed with argument" in command("user", "faisal", *options).stderr
    assert list_users(command) == {"faisal": "editor"}


class Terminal:
    """A command of seed.py at a terminal of its own."""

    def __init__(self, folder, *arguments, **options):
        self.file, other = pty.openpty()
        fcntl.ioctl(self.file, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))  # lines and columns
        command = [sys.executable, ROOT / "seed.py", *arguments]
        environment = os.environ | {"DATABASE_URL": database_url(folder)}
        files = {"stdin": other, "stdout": other, "stderr": other} | options
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **files)
        os.close(other)
        self.shown = ""

    def read(self, end=None):
        """Read until the text ends so, or until the command has ended; return all that was shown."""
        with contextlib.suppress(OSError):  # the other side is closed
            while not (end and self.shown.endswith(end)) and (part := os.read(self.file, 65536)):
                self.shown += part.decode()
        return self.shown

    def close(self):
        """Return the exit status, and all that was shown."""
        shown, status = self.read(), self.process.wait(20)
        os.close(self.file)
        return status, shown


@pytest.mark.parametrize(
    ("answers", "status", "sentence"),
    [
        (["secret 1\n", "secret 1\n"], 0, "Added user grace."),
        (["secret 1\n", "secret 2\n"], 1, "the passwords differ"),
        (["\x04"], 1, "interrupted"),  # Ctrl-D
    ],
)
def test_a_password_is_asked_for_twice_at_a_terminal_without_echo(tmp_path, answers, status, sentence):
    terminal = Terminal(tmp_path, "user", "grace")
    for prompt, answer in zip(("Password for grace: ", "Repeat the password: "), answers, strict=False):
        terminal.read(prompt)
        os.write(terminal.file, answer.encode())
    ended, shown = terminal.close()
    assert (ended, sentence in shown, "secret" in shown, "Traceback" in shown) == (status, True, False, False)


def test_ctrl_c_leaves_the_password_prompt_quietly(tmp_path):
    terminal = Terminal(tmp_path, "user", "grace")
    terminal.read("Password for grace: ")
    while terminal.process.poll() is None:  # a signal that comes just before the program reads does not interrupt it
        terminal.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            terminal.process.wait(1)
    status, shown = terminal.close()
    assert (status, shown.split()) == (1, ["Password", "for", "grace:", "interrupted"])


# -- Import ------------------------------------------------------------------------------------------------------------

CATALOGUE = [COURSE, course("MATH&151", 'Calculus "I"', "Noether"), course("ÉCO 1", "Économie; 物理", "")]
LATIN = "code;name;instructor\nÉCO 1;Économie;Ørsted\n".encode("windows-1252")


def import_text(command, text, *options):
    """Import standard input; return the sentence that says what was done."""
    return tell(command("import", "-", *options, stdin=text))


def delete_courses():
    Course.delete().execute()


def test_import_says_exactly_what_it_did(command):
    before = Course.get_all_courses()
    rows = [course("CSE465", "Networks", ""), course("CSE225", "Trees", "Ada"), course("CSE226", "Graphs", "Ada")]
    update = make_csv(*rows)
    assert import_text(command, update, "--update", "--dry-run") == "Would add 2 courses, update 1; nothing was stored."
    assert import_text(command, make_csv(*CATALOGUE), "--dry-run") == "Would add 3 courses; nothing was stored."
    assert Course.get_all_courses() == before
    assert import_text(command, update, "--update") == "Added 2 courses, updated 1."
    done = command("export", "-")
    assert done.stdout == make_csv(CSE115, *rows)
    assert done.stderr.startswith(f"Wrote {1 + len(rows)} courses to standard output.\n")
    assert import_text(command, make_csv(*CATALOGUE)) == "Added 3 courses."
    more = HEADER + "CSE465,Networks,\nCSE225,Trees,Grace\nCSE226,Graphs,Grace\nCSE227,Heaps,Ada\n"
    more += "ÉCO 1 , Économie; 物理 ,\n"
    assert import_text(command, more, "--update") == "Added 1 course, updated 2, 2 unchanged."
    assert import_text(command, more, "--update") == "Added 0 courses, 5 unchanged."
    assert import_text(command, '{"courses": []}') == "Added 0 courses."


def test_import_takes_what_the_list_returns(command, client):
    text = client.get("/courses").text
    delete_courses()
    assert import_text(command, f" {text}") == "Added 2 courses."
    assert [row["code"] for row in Course.get_all_courses()] == ["CSE115", "CSE465"]


def test_a_file_that_stands_behind_the_names_of_columns_is_told_to_stand_first(run):
    done = run("seed.py", "import", "--name", "Title", "list.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: seed.py import FILE [OPTION ...]\n")


def test_a_bad_file_changes_nothing_and_each_bad_line_is_named(command):
    before = Course.get_all_courses()
    text = "code,name,instructor\n\nA,a,a\nB,,b\nA,c,c\n" + "E,,\n" * 101
    done = command("import", "-", stdin=text)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    assert lines[0] == "nothing was stored; 103 rows were refused: 102 names missing, 1 code repeated"
    assert lines[1] == f"line 4: B: {NAME_RULE}; it is empty"
    assert lines[2] == "line 5: Course code A repeats line 3 with another name and instructor"
    assert lines[104].startswith("nothing was stored; correct the file, or add --repeats first (or join) to ")
    assert "--skip-invalid" in lines[104] and lines[105:] == []
    done = command("import", "-", stdin='[{"code": "A", "name": "a", "instructor": "a"}, 5]')
    assert done.stderr.splitlines()[:2] == [
        "nothing was stored; 1 row was refused: 1 row without fields",
        "row 2: a course must be an object",
    ]
    assert Course.get_all_courses() == before


NO_CATALOGUE = ["", "a,b\n1,2\n", "{}", '{"courses": 5}', "5", "[1", '{"courses": [', "[" * 10**5]


@pytest.mark.parametrize("text", NO_CATALOGUE, ids=[text[:14] for text in NO_CATALOGUE])
def test_what_is_no_catalogue_is_refused_with_one_line(command, text):
    assert len(fail(command("import", "-", stdin=text))) < 400


def test_a_file_of_another_encoding_is_imported_once_its_encoding_is_given(command):
    error = fail(command("import", "-", stdin=LATIN))
    assert error.startswith("line 2 ") and "CSV UTF-8" in error and "--encoding windows-1252" in error
    assert "klingon" in fail(command("import", "-", "--encoding", "klingon", stdin=LATIN))
    assert import_text(command, LATIN, "--encoding", "windows-1252") == "Added 1 course."
    assert Course.get_course("ÉCO 1")["instructor"] == "Ørsted"


DRAWING = "Dept,Number,Title,Room\nART,110,Drawing,A1\nART,210,,B2\nART,110,Drawing,A1\n"
COLUMNS = ["--code", "Dept", "Number", "--name", "Title"]


def test_columns_can_be_chosen_and_good_rows_stored_without_the_others(command, tmp_path):
    done = command("import", "-", *COLUMNS, "--skip-invalid", "--report", "bad.csv", stdin=DRAWING)
    assert done.stdout.splitlines()[:3] == [
        "Added 1 course.",
        "1 line repeated an earlier code, and counted once.",
        "Left out 1 line: 1 name missing.",
    ]
    assert done.stderr.splitlines() == [f"line 3: ART 210: {NAME_RULE}; it is empty", "Wrote 1 refused row to bad.csv."]
    report = (tmp_path / "bad.csv").read_text("utf-8-sig")
    assert report.splitlines()[1].endswith(",ART,210,,B2")
    (tmp_path / "good.csv").write_text(report.replace("210,,", "210,Painting,"))
    assert tell(command("import", "good.csv", *COLUMNS)) == "Added 1 course."
    assert Course.get_course("ART 210")["name"] == "Painting"


def test_a_taken_code_is_left_out_too(command, tmp_path):
    text = "code,name\nCSE115,Basics\nCSE225,Trees\n"
    done = command("import", "-", "--skip-invalid", "--report", "bad.csv", stdin=text)
    assert done.stdout.splitlines()[:2] == ["Added 1 course.", "Left out 1 line: 1 code taken."]
    assert (tmp_path / "bad.csv").read_text("utf-8-sig").splitlines()[1].endswith("already,CSE115,Basics")
    assert Course.get_course("CSE115")["name"] == CSE115["name"]
    assert "--update to change" in command("import", "-", stdin=text).stderr


def test_a_dry_run_shows_columns_courses_and_changes(command):
    before = Course.get_all_courses()
    text = "Nr ,name\nCSE115,Basics\nCSE 115,Twin\n"
    done = command("import", "-", "--code", "Nr", "--replace", "--dry-run", "--verbose", stdin=text)
    assert done.stdout.splitlines()[:-1] == [
        "Would add 1 course, update 1, delete 1; nothing was stored.",
        "Columns: code from Nr, name from name.",
        "  CSE115 | Basics",
        "  CSE 115 | Twin",
        f"~ CSE115: name {CSE115['name']!r} -> 'Basics'",
        "+ " + " | ".join(map(str, course("CSE 115", "Twin", "").values())),
        "- " + " | ".join(map(str, CSE465.values())),
        "Check the code: CSE 115 looks like CSE115.",
    ]
    assert Course.get_all_courses() == before


def test_a_replacement_that_deletes_much_needs_a_yes(command):
    text = "code,name\nCSE115,Basics\n"
    error = fail(command("import", "-", "--replace", stdin=text))
    assert error.startswith("This deletes 1 of 2 courses; nothing was stored. Add --yes")
    assert len(Course.get_all_courses()) == 2
    assert import_text(command, text, "--replace", "--yes") == "Added 0 courses, updated 1, deleted 1."
    assert import_text(command, text + "A,a\n", "--replace") == "Added 1 course, 1 unchanged."
    assert "no courses" in fail(command("import", "-", "--replace", "--yes", stdin="code,name\n"))
    assert [row["code"] for row in Course.get_all_courses()] == ["CSE115", "A"]


@pytest.mark.parametrize(("answer", "status", "sentence"), [("y\n", 0, "deleted 2"), ("\n", 1, "nothing was stored")])
def test_a_replacement_that_deletes_much_asks_at_a_terminal(run, tmp_path, answer, status, sentence):
    assert run("seed.py").returncode == 0
    (tmp_path / "list.csv").write_text("code,name\nA,a\n")
    terminal = Terminal(tmp_path, "import", tmp_path / "list.csv", "--replace")
    assert "This deletes 2 of 2 courses. Continue?" in terminal.read("[y/N] ")
    os.write(terminal.file, answer.encode())
    ended, shown = terminal.close()
    assert (ended, sentence in shown) == (status, True)


def test_a_change_while_a_replacement_waits_for_an_answer_is_not_lost(command, monkeypatch):
    confirm = seed.confirm_deletion

    def interfere(*args, **options):
        old = confirm(*args, **options)
        Course.add_course("NEW 1", "Ada", "Added meanwhile")
        return old

    monkeypatch.setattr(seed, "confirm_deletion", interfere)
    error = fail(command("import", "-", "--replace", stdin=make_csv(CSE115, CSE465)))
    assert "somebody else has changed the courses" in error
    assert len(Course.get_all_courses()) == 3


@pytest.mark.parametrize("arguments", [["import", "nowhere.csv"], ["export", "nowhere/out.csv"]])
def test_a_file_that_is_missing_is_named(command, arguments):
    assert "nowhere" in fail(command(*arguments))
    assert fail(command("import", "/")) == "cannot read /: Is a directory"


def test_ctrl_c_while_a_file_is_read_says_that_nothing_was_stored(run, tmp_path):
    command, environment = [*PYTHON, ROOT / "seed.py", "import", "-"], {"DATABASE_URL": database_url(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        process.stdin.write(b"code,name,instructor\n" + b"\n" * 500_000)  # more than a pipe holds, so it is being read
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == (b"", b"interrupted; nothing was stored\n")
    assert process.returncode == 1


@pytest.mark.parametrize("moment", range(3))
def test_ctrl_c_at_any_moment_of_an_import_leaves_the_courses_as_they_were(command, monkeypatch, moment):
    """Each of three rows is stored by a statement of its own, in one transaction."""
    before, moments = Course.get_all_courses(), iter(range(10))

    def interrupt(items):
        for item in items:
            yield item
            if next(moments) == moment:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(models, "BATCH", 1)
    monkeypatch.setattr(seed, "progress", interrupt)
    done = command("import", "-", stdin="code,name,instructor\nA,a,a\nB,b,b\nC,c,c\n")
    assert fail(done) == "interrupted; nothing was stored"
    assert Course.get_all_courses() == before


def test_ctrl_c_after_the_commit_does_not_hide_it(command, monkeypatch):
    store_courses = Course.store_courses

    def interrupt(*args, **kwargs):
        stored = store_courses(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return stored

    monkeypatch.setattr(Course, "store_courses", interrupt)
    assert import_text(command, make_csv(*CATALOGUE)) == "Added 3 courses."


# -- Export ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoding", "begin"),
    [
        ("out.csv", "", EXPORT_HEADER.encode()),
        ("OUT.CSV", "utf-8-sig", EXPORT_HEADER.encode("utf-8-sig")),
        ("out.json", "", b"[{"),
        ("out.xlsx", "", b"PK"),
        ("out.JSON", "utf-16", "\ufeff[{".encode("utf-16-le")),
    ],
)
def test_what_export_writes_import_takes_back_unchanged(command, tmp_path, name, encoding, begin):
    delete_courses()
    import_text(command, make_csv(*CATALOGUE))
    done = command("export", name, *(["--encoding", encoding] if encoding else []))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"Wrote 3 courses to {name}.\n")
    assert (tmp_path / name).read_bytes().startswith(begin)
    delete_courses()
    assert tell(command("import", name)) == "Added 3 courses."
    assert command("export", "-").stdout == make_csv(*CATALOGUE)


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["out.txt"], "out.txt; end its name in .csv, .json or .xlsx"),
        (["out.csv", "--encoding", "klingon"], "klingon"),
        (["out.csv", "--encoding", "windows-1252"], "windows-1252"),  # which has no 物
    ],
)
def test_an_export_that_cannot_be_written_is_refused_and_leaves_no_file(command, tmp_path, arguments, fragment):
    import_text(command, make_csv(*CATALOGUE))
    error = fail(command("export", *arguments))
    assert fragment in error and "codec" not in error
    assert list(tmp_path.glob("out*")) == []


# -- Backup and restore ------------------------------------------------------------------------------------------------

TABLES = ("courses", "users", "signing_key")


def contents(path):
    """Return the rows of a catalogue's tables."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return {table: database.execute(f"SELECT * FROM {table} ORDER BY id").fetchall() for table in TABLES}


def execute(path, script):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.executescript(script)


@pytest.mark.sqlite
def test_a_backup_is_whole_and_never_overwrites(command, tmp_path):
    models.SigningKey.get_key()
    assert tell(command("backup", "b.db")) == "Copied the database to b.db."
    assert contents(tmp_path / "b.db") == contents(database.db.database)
    assert (tmp_path / "b.db").read_bytes()[18:20] == b"\1\1"  # no WAL, which takes a folder that can be written to
    import_text(command, make_csv(*CATALOGUE))
    before = (tmp_path / "b.db").read_bytes()
    assert fail(command("backup", "b.db")) == "b.db already exists; nothing was written"
    assert (tmp_path / "b.db").read_bytes() == before


@pytest.mark.sqlite
def test_a_backup_that_cannot_be_written_says_which_file(command):
    assert fail(command("backup", "nowhere/b.db")) == "cannot write nowhere/b.db: No such file or directory"


@pytest.mark.sqlite
def test_a_backup_that_fails_leaves_nothing(command, monkeypatch, tmp_path):
    """The copy may have only ten pages, as if the disk were full."""
    command("random", "500")
    monkeypatch.setattr(database.SQLite, "pragmas", database.SQLite.pragmas | {"max_page_count": 10})
    assert fail(command("backup", "b.db")) == "cannot write b.db: the disk is full (database or disk is full)"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite
@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_a_database_and_its_backups_are_for_their_owner_alone(run, start, tmp_path, mask):
    before = os.umask(mask)
    try:
        api = start()
        run("seed.py", "backup", "b.db")
        assert api.request("/health")[0] == 200
        files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert files == dict.fromkeys(["b.db", "courses.db", "courses.db-wal", "courses.db-shm"], 0o600)


@pytest.mark.sqlite
def test_a_backup_of_no_database_creates_none(run, tmp_path):
    assert f"{tmp_path}/nowhere.db" in fail(run("seed.py", "backup", "b.db", DATABASE_URL="sqlite:///nowhere.db"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sqlite
def test_restore_brings_courses_users_and_the_key_back_while_the_api_runs(run, start, tmp_path):
    run("seed.py")
    api = start()
    run("seed.py", "backup", "b.db")
    backup, saved = (tmp_path / "b.db").read_bytes(), contents(tmp_path / "b.db")
    insert, values = insert_sql(code="'NEW'", name="'New'", instructor="''")
    change = f"""
        DELETE FROM courses WHERE code = 'CSE115';
        {insert} VALUES ({values});
        UPDATE users SET password = 'another';
        INSERT INTO users (username, password) VALUES ('grace', 'another');
        UPDATE signing_key SET value = 'another';
        """
    execute(tmp_path / "courses.db", change)
    assert tell(run("seed.py", "restore", "b.db")) == "Restored the database from b.db."
    assert contents(tmp_path / "courses.db") == saved
    assert (tmp_path / "b.db").read_bytes() == backup
    _, courses = api.request("/courses", Authorization=f"Bearer {api.log_in()}")
    assert "CSE115" in courses and "NEW" not in courses
    assert {path.name.partition("-")[0] for path in tmp_path.iterdir()} == {"b.db", "courses.db"}


@pytest.mark.sqlite
def test_restore_reads_a_file_with_a_journal_where_nothing_can_be_written(run, seeded, tmp_path):
    """Its last course is in the journal only."""
    (tmp_path / "backups").mkdir()
    with contextlib.closing(sqlite3.connect(seeded)) as other:
        insert, values = insert_sql(code="'NEW'", name="'New'", instructor="''")
        other.execute(f"{insert} VALUES ({values})")
        other.commit()
        for ending in ("", "-wal"):
            shutil.copy(f"{seeded}{ending}", tmp_path / f"backups/b.db{ending}")
    execute(seeded, "DELETE FROM courses")
    (tmp_path / "backups").chmod(0o500)
    try:
        done = run_bound(tmp_path, "seed.py", "restore", "backups/b.db")
    finally:
        (tmp_path / "backups").chmod(0o700)
    assert tell(done) == "Restored the database from backups/b.db."
    assert {code for _, code, *_ in contents(seeded)["courses"]} == {"CSE115", "CSE465", "NEW"}
    assert {path.name for path in (tmp_path / "backups").iterdir()} == {"b.db", "b.db-wal"}


@pytest.mark.sqlite
def test_restore_writes_through_a_symbolic_link(run, seeded, tmp_path):
    """Nothing can be written beside the link."""
    run("seed.py", "backup", "b.db")
    execute(seeded, "DELETE FROM courses")
    (tmp_path / "link").mkdir()
    link = tmp_path / "link/courses.db"
    link.symlink_to(seeded)
    (tmp_path / "link").chmod(0o500)
    try:
        assert run_bound(tmp_path, "seed.py", "restore", "b.db", DATABASE_URL=f"sqlite:///{link}").returncode == 0
    finally:
        (tmp_path / "link").chmod(0o700)
    assert link.is_symlink() and list((tmp_path / "link").iterdir()) == [link]
    assert len(contents(seeded)["courses"]) == 2


LATER = "INSERT INTO schema_migration (name, applied) VALUES ('0999_later', '2026-01-01')"


def blank_last_page(path):
    execute(path, "VACUUM")  # else the page could be an unused one
    path.write_bytes(path.read_bytes()[:-4096] + bytes(4096))


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no database": lambda path: path.write_bytes(b"code,name,instructor\r\n" * 1000),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "damaged inside": lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xa5" * 40960),
    "blank at the end": blank_last_page,
    "without users": lambda path: execute(path, "DROP TABLE users"),
    "of a newer version": lambda path: execute(path, LATER),
}


@pytest.mark.sqlite
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_restore_refuses_what_is_no_sound_backup_and_changes_nothing(command, tmp_path, damage):
    command("random", "500")
    command("backup", "b.db")
    before = contents(database.db.database)
    damage(tmp_path / "b.db")
    assert "b.db" in fail(command("restore", "b.db"))
    assert contents(database.db.database) == before


@pytest.mark.parametrize(("name", "tools"), [("backup", "pg_dump or mariadb-dump"), ("restore", "pg_restore")])
def test_backup_and_restore_name_the_servers_own_tools(command, monkeypatch, name, tools):
    monkeypatch.setattr(database.db, "pooled", True)
    assert tools in fail(command(name, "b.db"))


# -- Made-up courses ---------------------------------------------------------------------------------------------------


def test_random_courses_are_the_same_for_the_same_seed(command):
    def make(*arguments):
        delete_courses()
        assert tell(command("random", *arguments)) == "Added 500 courses."
        return [row | {"id": 0} for row in Course.get_all_courses()]

    first = make("500")
    assert first != make("500", "--seed", "2")
    assert first == make("500", "--seed", "1")
    assert tell(command("random", "500")) == "Added 500 courses."
    assert Course.select().count() == 1000


@pytest.mark.parametrize("number", ["-3", "0", "1.5", "many"])
def test_a_number_of_courses_that_is_no_number_is_refused(command, number):
    assert f"{number} is not a whole number, 1 or more" in command("random", number).stderr
    assert Course.select().count() == 2


def test_a_progress_bar_shows_at_a_terminal_only(run, tmp_path):
    terminal = Terminal(tmp_path, "random", "2000", stdout=subprocess.DEVNULL)
    status, shown = terminal.close()
    assert (status, "0/2000" in shown, "courses/s" in shown) == (0, True, True)
    assert run("seed.py", "random", "1").stderr == ""
