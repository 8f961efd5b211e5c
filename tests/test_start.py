"""How the programs start: what stops them with one line, and what they wait for."""

import contextlib
import os
import pathlib
import signal
import socket
import sqlite3
import subprocess
import threading

import peewee
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import PYTHON, process_options, refused, run_bound
from servers import ROOT, execute, new_database, own_postgres, wait_until

import database
import database_url

# -- Passwords in DATABASE_URL -----------------------------------------------------------------------------------------

FORMS = [
    "{scheme}://user:{password}@127.0.0.1:1/name",
    "{scheme}://user:{password}@localhost/name?connect_timeout=1&port=1",
    "{scheme}://user@127.0.0.1:1/name?password={password}",
    "{scheme}://user@127.0.0.1:1/name?password={password}&connect_timeout=1",
]
ODD = st.text(st.sampled_from("/?#@:&=%+[]'\\\"0123456789abcXYZ é物\t"), min_size=4, max_size=12)


def why_refused(url):
    """Return the line with which a program on a database that is away stops."""

    def use():
        target = database.from_url(url)
        with pytest.MonkeyPatch.context() as patch, database.exit_if_unusable():
            patch.setattr(database, "db", target)
            target.connect()

    with pytest.raises(SystemExit) as stop:
        use()
    return str(stop.value)


@pytest.mark.sqlite
@settings(deadline=None, max_examples=100)
@given(password=ODD, form=st.sampled_from(FORMS), scheme=st.sampled_from(["postgresql", "mysql", "mariadb"]))
@example("12/34@56", FORMS[0], "postgresql")
@example("1234?5678", FORMS[0], "mysql")
@example("12345678", FORMS[2], "mysql")
@example("true", FORMS[2], "mariadb")
@example("p@ss", FORMS[2], "postgresql")
@example("word&word", FORMS[2], "postgresql")
@example("word%00word", FORMS[0], "postgresql")
@example("port=word", FORMS[0], "postgresql")
@example("&sslmode=word", FORMS[2], "mysql")
@example("&sslmode=word", FORMS[2], "postgresql")
@example("&port=word", FORMS[2], "postgresql")
@example("&connect_timeout=word", FORMS[2], "postgresql")
def test_no_part_of_a_password_appears_in_the_line(password, form, scheme):
    url = form.format(scheme=scheme, password=password)
    rest = (
        form.format(scheme=scheme, password="") + "percent-encode the password, and check port and options DATABASE_URL"
    )
    line = why_refused(url)
    assert "\n" not in line
    parts = {password[start : start + 4] for start in range(len(password) - 3)}
    assert [part for part in parts if part in line and part not in rest and not part.isspace()] == []


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@127.0.0.1:1/name?ssl=true",
        "mysql://user:secret@127.0.0.1:1/name?ssl=true",
        "postgresql://user:secret@127.0.0.1/name?port=abc",
        "mysql://user:secret@127.0.0.1/name?port=abc",
        "mysql://user:secret@127.0.0.1:1/name?stale_timeout=abc",
        "postgresql://user:secr%00et@127.0.0.1:1/name",
        "postgresql://user:sec/ret@127.0.0.1:1/name",
        "mysql://user:secret@127.0.0.1:abc/name",
    ],
)
def test_a_url_that_the_driver_cannot_take_is_refused_in_one_line_which_says_what_to_do(run, url):
    for program in ("course_api.py", "seed.py"):
        line = refused(run(program, DATABASE_URL=url, PORT="0"))
        assert "percent-encode the password" in line and "sec" not in line


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "url", ["redis+cluster://h", "redis://:12/3456@h", "redis://:1234#56@h", "redis://u:p?w@h", "redis://"]
)
def test_a_bad_limit_storage_is_refused_in_one_line(run, url):
    line = refused(run("course_api.py", LIMIT_STORAGE=url))
    assert line.startswith("LIMIT_STORAGE must be memory://, or like redis://host:6379") and "1234" not in line


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "query", ["ssl_ca=/ca.pem", "ssl_verify_identity=true", "ssl_verify_identity=true&ssl_verify_cert=true"]
)
def test_half_of_what_checks_mariadbs_certificate_is_refused(query):
    assert "checks nothing without ssl_" in why_refused(f"mariadb://user@127.0.0.1:1/name?{query}")


@pytest.mark.sqlite
@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("mysql://user:p%C3%A9%40@127.0.0.1:1/name", "pé@".encode()),
        ("mysql://user@127.0.0.1:1/name?password=0123", b"0123"),
        ("mysql://user@127.0.0.1:1/name?passwd=true", b"true"),
        ("postgresql://user:p%40s%23@127.0.0.1:1/name", "p@s#"),
        ("postgresql://user:p#@127.0.0.1:1/name", "p#"),
        ("postgresql://user@127.0.0.1:1/name?password=0123", "0123"),
    ],
)
def test_a_password_reaches_the_driver_to_the_letter(url, password):
    options = database.from_url(url).connect_params
    assert options["password"] == password and "passwd" not in options


# -- Names of servers --------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_look_up_that_takes_too_long_is_given_up(monkeypatch, scheme):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answered.wait())
    monkeypatch.setattr(database_url, "CONNECT_SECONDS", 0.01)
    target = database.from_url(f"{scheme}://db.example/name")
    with pytest.raises(peewee.OperationalError, match=r"no name server answers for db\.example"):
        target.connect()
    answered.set()


@pytest.mark.parametrize(
    ("hosts", "ports", "used"),
    [
        ("good,silent", "1,2", ("good,silent", "1,2")),
        ("silent,good", "1,2", ("good", "2")),
        ("silent,silent,good,silent", 5432, ("good,silent", 5432)),
        ("silent,10.0.0.1", "1,2", ("10.0.0.1", "2")),
        ("silent,::1", "1,2", ("::1", "2")),
        ("silent,/run/postgresql", "1,2", ("/run/postgresql", "2")),
        ("silent,%40socket", "1,2", ("@socket", "2")),
        ("silent,", "1,2", ("", "2")),
    ],
)
@pytest.mark.sqlite
def test_hosts_in_front_whose_names_nobody_looks_up_are_skipped(monkeypatch, hosts, ports, used):
    answered, passed = threading.Event(), []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, _: host == "good" or answered.wait())
    monkeypatch.setattr(database_url, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(peewee.PostgresqlDatabase, "_connect", lambda target: passed.append(target.connect_params))
    target = database.from_url(f"postgresql:///name?host={hosts}&port={ports}")
    before = target.connect_params
    database.UnpooledPostgreSQL._connect(target)
    answered.set()
    assert [(params["host"], params["port"]) for params in passed] == [used]
    assert target.connect_params == before


@pytest.fixture
def as_root(tmp_path):
    """A function that runs a command after a shell script which mounts what only the two of them see."""
    if os.geteuid() != 0:
        pytest.skip("run the tests as root, who may mount")

    def as_root(script, command, **settings):
        unshare = ["unshare", "--mount", "sh", "-e", "-c", script, "sh", *command]
        return subprocess.run(unshare, capture_output=True, timeout=120, **process_options(tmp_path, settings))

    return as_root


NO_NAME_SERVER = """
echo nameserver 127.9.9.9 > resolv.conf
mount --bind resolv.conf /etc/resolv.conf
exec "$@"
"""


@pytest.mark.integration
@pytest.mark.sqlite
@pytest.mark.parametrize("scheme", ["postgresql", "mysql"])
def test_a_name_server_that_does_not_answer_stops_the_start_with_one_line(tmp_path, as_root, scheme):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.9.9.9", 53))
        command = [*PYTHON, ROOT / "seed.py", "users"]
        done = as_root(NO_NAME_SERVER, command, DATABASE_URL=f"{scheme}://user:secret@db.example/name")
    assert "no name server answers for db.example" in refused(done)


# -- Rights ------------------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
@pytest.mark.parametrize("name", ["courses.db", "courses.db-wal", "courses.db-shm", "."])
def test_a_file_or_folder_that_cannot_be_written_stops_the_start_and_is_named_with_the_user(seeded, name):
    folder = seeded.parent
    mode = (folder / name).stat().st_mode if name in (".", "courses.db") else 0o600
    with contextlib.ExitStack() as stack:
        if name not in (".", "courses.db"):  # another program has the database open
            other = stack.enter_context(contextlib.closing(sqlite3.connect(seeded)))
            other.execute("DELETE FROM courses")
            other.commit()
        (folder / name).chmod(0o500)
        stack.callback((folder / name).chmod, mode)
        line = refused(run_bound(folder, "course_api.py", PORT="0"))
    assert f"user {os.getuid()} cannot " in line and str(folder / name) in line
    assert line.endswith(f", which belongs to user {os.getuid()}\n")


@pytest.mark.sqlite
def test_a_missing_folder_is_named(run):
    line = refused(run("course_api.py", DATABASE_URL="sqlite:////nowhere/courses.db"))
    assert line.endswith("; there is no folder /nowhere\n")


@pytest.mark.sqlite
def test_a_folder_in_place_of_the_file_is_named(run, tmp_path):
    line = refused(run("course_api.py", DATABASE_URL=f"sqlite:///{tmp_path}"))
    assert line.endswith(f"; {tmp_path} is a folder; name a file in it\n")


@pytest.mark.sqlite
def test_a_database_that_another_program_has_locked_is_served(start, seeded):
    start().stop()  # which has made the key
    with contextlib.closing(sqlite3.connect(seeded, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        api = start()
        assert "WARNING the database is locked: another program has locked it (database is locked)" in api.output[0]
        assert api.request("/health")[0] == 200


@pytest.fixture(scope="module")
def cluster():
    with own_postgres() as server:
        yield server


@pytest.mark.integration
@pytest.mark.sqlite
def test_a_role_of_postgresql_without_rights_is_named_with_them(run, cluster):
    execute(cluster.url, "CREATE ROLE poor LOGIN")
    with new_database(cluster.url) as url:
        poor = url.replace("postgres@", "poor@")
        line = refused(run("course_api.py", DATABASE_URL=poor))
        assert "a right is missing (permission denied for schema public" in line
        assert line.endswith("; user poor must own the tables, and have the right CREATE on the schema or database\n")
        assert run("seed.py", DATABASE_URL=url).returncode == 0
        execute(url, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO poor")
        assert "permission denied for table courses" in refused(run("course_api.py", DATABASE_URL=poor))


@pytest.mark.integration
@pytest.mark.sqlite
def test_a_read_only_postgresql_stops_the_start(run, cluster):
    with new_database(cluster.url) as url:
        assert run("seed.py", DATABASE_URL=url).returncode == 0
        options = "?options=-c%20default_transaction_read_only%3Don"
        assert "the database is read-only (cannot execute" in refused(run("course_api.py", DATABASE_URL=url + options))
        assert "editor" in run("seed.py", "users", DATABASE_URL=url + options).stdout


NO_TEMPORARY_FOLDER = """
mount --bind . /mnt
for folder in /tmp /var/tmp /usr/tmp; do
    mkdir -p $folder
    mount --bind $folder $folder
    mount -o remount,ro,bind $folder
done
cd /
exec "$@"
"""
FILL = """
import os, models, database
assert not any(os.access(folder, os.W_OK) for folder in ("/tmp", "/var/tmp", "/usr/tmp", ".")), "a folder is writable"
database.init_db()
rows = [{"code": f"C {n}", "name": "n" * 120, "instructor": "i" * 120} for n in range(60000)]
print(models.Course.store_courses(rows).created)
print(models.Course.store_courses([row | {"name": "m" * 120} for row in rows], models.Mode.UPDATE).updated)
print(models.Course.get_page(sort="-name")[0])
database.db.execute_sql("VACUUM")
"""


@pytest.mark.integration
@pytest.mark.sqlite
def test_sqlite_needs_no_folder_for_temporary_files(as_root, tmp_path):
    url = {"DATABASE_URL": "sqlite:////mnt/courses.db"}
    script = NO_TEMPORARY_FOLDER.replace('exec "$@"', 'mount -o remount,ro,bind / && exec "$@"')
    done = as_root(script, [*PYTHON, "-c", FILL], **url)
    assert (done.stdout, done.stderr) == ("60000\n" * 3, "")
    seed = [*PYTHON, ROOT / "seed.py"]
    assert as_root(script, [*seed, "backup", "/mnt/b.db"], **url).stdout.startswith("Copied the database to /mnt/b.db.")
    done = as_root(script, [*seed, "restore", "/mnt/b.db"], **url)
    assert done.stdout.startswith("Restored the database from /mnt/b.db.")


# -- Signals -----------------------------------------------------------------------------------------------------------

LOCKS = {
    "sqlite": "BEGIN IMMEDIATE",
    "postgresql": "SELECT pg_advisory_lock(5000)",
    "mysql": "SELECT GET_LOCK(CONCAT(DATABASE(), ' schema'), 0)",
}


@contextlib.contextmanager
def migration_locked(url):
    """Hold for the block the lock that a migration waits for."""
    target = database.from_url(url)
    with contextlib.closing(target):
        target.execute_sql(LOCKS[url.partition(":")[0]])
        yield target
    if target.pooled:
        target.close_idle()


def is_waiting(process, target):
    """Return whether a process waits for the lock that `target` holds, or is about to."""
    if not target.pooled:
        return "courses.db-shm" in pathlib.Path(f"/proc/{process}/maps").read_text()
    if isinstance(target, peewee.PostgresqlDatabase):
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    else:
        waiting = "SELECT 1 FROM information_schema.processlist WHERE db = DATABASE() AND state = 'User lock'"
    return target.execute_sql(waiting).fetchone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_stops_while_it_waits_for_the_migrations_lock(tmp_path, number):
    """Process 1 of a container ignores signals that it does not handle."""
    if os.geteuid() != 0:
        pytest.skip("run the tests as root, who may make process 1")
    command = ["unshare", "--pid", "--fork", "--kill-child", *PYTHON, ROOT / "course_api.py"]
    options = process_options(tmp_path, {"PORT": "0"})
    with migration_locked(options["env"]["DATABASE_URL"]) as target, subprocess.Popen(command, **options) as outer:
        children = pathlib.Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        process = int(wait_until(children.read_text))
        wait_until(lambda: is_waiting(process, target))
        os.kill(process, number)
        assert outer.wait(20) == 128 + number
