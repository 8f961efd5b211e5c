"""`python course_api.py` as a real process: settings, start, log, threads, signals, and faults of the disk."""

import concurrent.futures
import contextlib
import ctypes
import fcntl
import ipaddress
import os
import re
import resource
import runpy
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys

import pytest
from catalogue import NEW
from processes import PYTHON, ROOT, Server, process_options, refused
from servers import ask, ask_in_turn, connect, find_ports, is_listening, read_all, running, wait_until

import server
import settings

pytestmark = pytest.mark.sqlite
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) .+")


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """A server that all tests share; it has no user and no course."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("server"))) as server:
        yield server


# -- Settings ----------------------------------------------------------------------------------------------------------

SETTINGS = {  # a good value of each, what it means, what a refusal names, and bad values
    "HOST": ("127.0.0.2", "127.0.0.2", ""),
    "PORT": ("8000", 8000, "0 to 65535", "http", "70000", "-1"),
    "URL_PREFIX": ("/catalogue", "/catalogue", "/catalogue", "catalogue", "/a?b"),
    "DATABASE_URL": ("sqlite:///b.db", "sqlite:///b.db", "sqlite:///", "b.db", "sqlite://b.db", "oracle://a:tiger@b/c"),
    "SECRET_KEY": ("k" * 32, b"k" * 32, "32 bytes", "k" * 31),
    "TOKEN_SECONDS": ("60", 60, "1 to 1000000000", "0", "1.5"),
    "PUBLIC_READ": ("true", True, "true or false", "maybe"),
    "LOGIN_LIMIT": ("3/minute", "3 per 1 minute", "5/5minutes", "often", "5/5fortnights"),
    "LIMIT_STORAGE": ("memory://", settings.LIMIT_STORAGE, "redis://", "disk://", "nothing"),
    "TRUSTED_PROXY": ("127.0.0.1", [ipaddress.ip_network("127.0.0.1")], "127.0.0.1", "cafe", "999.999.1.1", "nginx, *"),
    "CORS_ORIGINS": ("https://a.example", re.compile(r"https://a\.example"), "https://a", "example.com", "https://*"),
    "THREADS": ("8", 8, "1 to 1000", "0"),
    "LOG_LEVEL": ("DEBUG", "DEBUG", "DEBUG, INFO, WARNING or ERROR", "info"),
}


def read_settings():
    """Return the names that settings.py defines."""
    return runpy.run_path(str(ROOT / "settings.py"))


def as_text(value):
    return re.sub(" at 0x.*", "", str(value))


def why_refused():
    """Return the line with which the program stops."""
    with pytest.raises(SystemExit) as stop:
        read_settings()
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_setting_is_refused_with_one_line_that_names_the_choices(monkeypatch, name):
    _, _, choices, *bad = SETTINGS[name]
    for value in bad:
        monkeypatch.setenv(name, value)
        line = why_refused()
        assert line.startswith(f"{name} must ") and choices in line and "tiger" not in line


@pytest.mark.parametrize("name", SETTINGS)
def test_any_setting_may_come_from_a_file(monkeypatch, tmp_path, name):
    value, meaning, *_ = SETTINGS[name]
    monkeypatch.setenv(name, "")  # as if it were not set
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    assert f"{name}_FILE" in why_refused()  # there is no such file
    (tmp_path / "secret").write_text(" \n")
    assert "is empty" in why_refused()
    (tmp_path / "secret").write_text(f"{value}\n")
    assert as_text(read_settings()[name]) == as_text(meaning)
    monkeypatch.setenv(name, "nonsense, since images set defaults")
    assert as_text(read_settings()[name]) == as_text(meaning)


@pytest.mark.parametrize(
    ("origin", "sent"),
    [
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:080", "http://a.example"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example/page?x#y", "https://a.example"),
        ("HTTPS://A.example", "https://a.example"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example"),
        ("https://*.straße.example:8443", "https://*.xn--strae-oqa.example:8443"),
        ("https://b.example, https://a.example:443", "https://a.example"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_with_the_one_to_write(monkeypatch, origin, sent):
    monkeypatch.setenv("CORS_ORIGINS", origin)
    refusal = f"CORS_ORIGINS must be origins as browsers send them: write {sent} in place of {origin.split(', ')[-1]};"
    assert why_refused().startswith(refusal)
    monkeypatch.setenv("CORS_ORIGINS", sent)
    read_settings()


# -- Start -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("HOST", "no such host"), ("HOST", "192.0.2.1"), ("THREADS", "0"), ("DATABASE_URL", "sqlite:////nowhere/a.db")],
)
def test_a_bad_setting_stops_the_start_with_one_line(run, name, value):
    line = refused(run("course_api.py", **{"PORT": "0", name: value}))
    assert name in line or value in line


def test_a_port_in_use_is_named_with_a_line_that_chooses_another(run, api):
    port = int(api.url.rpartition(":")[2])
    assert f"choose another: PORT={port + 1} python course_api.py" in refused(run("course_api.py", PORT=str(port)))


def test_an_argument_is_told_that_settings_are_environment_variables(run):
    done = run("course_api.py", "--port", "80")
    assert done.returncode == 2
    assert "settings are environment variables, such as: PORT=5001 python course_api.py" in done.stderr


def test_a_host_of_all_addresses_is_served_at_one_port_on_ipv4_and_ipv6(start):
    api = start(HOST="*")
    assert api.url.startswith("http://127.0.0.1:")
    for url in (api.url, api.url.replace("127.0.0.1", "[::1]")):
        assert ask(url, "GET", "/health", source="")[0] == 200


def test_help_and_version_are_right_and_change_nothing(run, tmp_path):
    shown = run("course_api.py", "--help").stdout
    assert [name for name in SETTINGS if f"    {name} " not in shown] == []
    version = run("course_api.py", "--version").stdout.split()[-1]
    released = re.findall(r"^## ([\d.]+) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version
    assert list(tmp_path.iterdir()) == []


def test_a_token_outlives_a_restart_unless_the_key_changes(seeded, start):
    first = start()
    bearer = first.bearer()
    assert start().request("/courses", **bearer)[0] == 200
    assert start(SECRET_KEY="k" * 32).request("/courses", **bearer)[0] == 401
    assert "WARNING" not in "".join(first.output) and "seed.py" not in "".join(first.output)


def test_it_says_that_there_is_no_user_yet(api):
    assert "there is no user yet; add one: python seed.py user NAME" in "".join(api.output)


def test_on_a_public_address_it_warns_of_the_published_password_until_that_is_changed(run, start, seeded):
    api = start(HOST="::")
    assert api.url.startswith("http://[::1]:")  # which can be opened
    assert api.request("/health")[0] == 200
    assert any(re.search(" WARNING .*faisal", line) for line in api.output)
    run("seed.py", "user", "faisal", stdin="another-password\n")
    api = start(HOST="0.0.0.0")
    assert api.url.startswith("http://127.0.0.1:")
    assert "WARNING" not in "".join(api.output)


def test_a_database_in_memory_has_the_dummy_data_and_is_shared_by_all_threads(start, tmp_path):
    assert start(DATABASE_URL="sqlite:///:memory:").check_many_clients() == 62
    assert list(tmp_path.iterdir()) == []


def test_a_crash_of_the_event_loop_is_not_a_clean_exit(start):
    api = start(
        "-c",
        "import course_api, loop\n"
        "def crash(*_, **__): raise RuntimeError('the event loop has crashed')\n"
        "loop.Sockets.poll = crash\n"
        "course_api.main()\n",
    )
    assert api.wait() not in (0, None)
    assert any("the event loop has crashed" in line for line in api.output)


@pytest.mark.sqlite
def test_a_fault_of_the_server_in_one_request_stops_no_other(seeded, start):
    api = start(
        "-c",
        "import course_api, server\n"
        "service = server.Channel.service\n"
        "def fail(channel):\n"
        "    if channel.requests[0].path == '/courses/FAULT': raise RuntimeError('a fault of the server')\n"
        "    service(channel)\n"
        "server.Channel.service = fail\n"
        "course_api.main()\n",
    )
    with connect(api.url) as connection:
        connection.sendall(b"GET /courses/FAULT HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert wait_until(lambda: any("a fault of the server" in line for line in api.output))
        assert api.request(f"/courses/CSE115?token={api.log_in()}")[0] == 200


def test_it_serves_where_the_system_has_only_select(start):
    """As Windows."""
    api = start(
        "-c",
        "import runpy, selectors\n"
        "selectors.DefaultSelector = selectors.SelectSelector\n"
        f"runpy.run_path({str(ROOT / 'course_api.py')!r}, run_name='__main__')\n",
        DATABASE_URL="sqlite:///:memory:",
    )
    assert api.check_many_clients() == 62


@pytest.mark.parametrize(("scheme", "driver"), [("postgresql", "psycopg2"), ("mysql", "pymysql")])
def test_a_driver_that_is_missing_is_named_with_the_file_that_installs_it(run, tmp_path, scheme, driver):
    names = dict.fromkeys((driver, "psycopg", "MySQLdb", "mariadb"))
    (tmp_path / "bare.py").write_text(
        f"import sys; sys.modules.update({names})\nimport course_api; course_api.main()\n"
    )
    line = refused(run(tmp_path / "bare.py", DATABASE_URL=f"{scheme}://user:secret@127.0.0.1/name", PORT="0"))
    assert "requirements-servers.txt" in line and "secret" not in line


# -- The log -----------------------------------------------------------------------------------------------------------


def test_each_request_has_a_line_in_the_log_and_no_line_has_a_secret(run, start, seeded):
    run("seed.py", "user", "grace", stdin="a-secret-password\n")
    api = start(LOG_LEVEL="DEBUG", SECRET_KEY="a-secret-key-of-more-than-32-bytes")
    login = {"username": "grace", "password": "a-secret-password"}
    token = api.log_in(**login)
    bearer = {"Authorization": f"Bearer {token}"}
    api.request("/login?password=a-wrong-secret", "POST", login | {"password": "a-wrong-secret"})
    api.request("/health")
    courses = api.request(f"/courses?token={token}")[1]
    key = run("seed.py", "key", "grace", "cron").stdout.strip()
    api.request(f"/courses/CSE465?token={key}")
    api.request(f"/courses/CSE465?token={key}x")
    bundle = api.request("/docs/swagger_bundle.js")[1]
    api.request("/courses", "POST", NEW, **bearer)
    api.request("/courses/AAS%20100", "HEAD", **bearer)
    api.request("/courses/%0Aforged%1B%5B2J?token=a-wrong-secret")
    with connect(api.url) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        read_all(connection)
    with contextlib.closing(sqlite3.connect(seeded)) as database:
        database.execute("ALTER TABLE users RENAME TO away")
    assert ask(api.url, "POST", "/login", login)[0] == 500
    assert api.stop() == 0
    log = "\n".join(api.output)
    secrets = ("a-secret", "a-wrong", "key_", token, token.split(".")[2], "argon2", "token=", "password=")
    assert [secret for secret in secrets if secret in log] == []
    requests = [line for line in api.output if line.endswith(" ms")]
    assert all(LINE.fullmatch(line) for line in [*requests, api.output[0], api.output[-1]])
    assert "Serving" in api.output[0] and "Stopped" in api.output[-1]
    found = [re.sub(r"^\S+ | [\d.]+ ms$", "", line) for line in requests]
    expected = [
        rf"INFO 127.0.0.1 grace POST /login 200 {len(token)} bytes",
        r"INFO 127.0.0.1 \S+ POST /login 400 \d+ bytes",
        r"DEBUG 127.0.0.1 - GET /health 200 16 bytes",
        rf"INFO 127.0.0.1 grace GET /courses 200 {len(courses.encode())} bytes",
        rf"INFO 127.0.0.1 - GET /docs/swagger_bundle.js 200 {len(bundle.encode())} bytes",
        r"INFO 127.0.0.1 grace GET /courses/CSE465 200 \d+ bytes",
        r"INFO 127.0.0.1 - GET /courses/CSE465 401 \d+ bytes",
        r"INFO 127.0.0.1 grace POST /courses 201 0 bytes",
        r"INFO 127.0.0.1 grace HEAD /courses/AAS%20100 404 0 bytes",
        r"INFO 127.0.0.1 - GET /courses/%0Aforged%1B%5B2J 401 \d+ bytes",
        r"INFO 127.0.0.1 - - - 400 \d+ bytes",
        r"INFO 127.0.0.1 \S+ POST /login 500 \d+ bytes",
    ]
    assert len(found) == len(expected)
    assert [pattern for pattern in expected if not any(re.fullmatch(pattern, line) for line in found)] == []


def test_the_log_leaves_out_what_is_below_its_level(api):
    api.request("/health")
    api.request("/courses")
    api.wait_for(" INFO 127.0.0.1 - GET /courses 401 ")
    assert "/health" not in "".join(api.output)


def test_a_log_that_cannot_be_written_does_not_stop_the_service(tmp_path):
    (port,) = find_ports(1)
    command = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *PYTHON, ROOT / "course_api.py"]
    with running(command, port, tmp_path / "errors", **process_options(tmp_path, {"PORT": str(port)})):
        for _ in range(5):
            assert ask(f"http://127.0.0.1:{port}", "GET", "/courses")[0] == 401


def test_a_log_that_nobody_reads_holds_up_no_request_and_no_signal_and_what_is_lost_is_counted(tmp_path):
    (port,) = find_ports(1)
    program = "import course_api, logs; logs.MAX_LINES = 100; course_api.main()"
    options = process_options(tmp_path, {"PORT": str(port)})
    with subprocess.Popen([*PYTHON, "-c", program], stdout=subprocess.PIPE, **options) as process:
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        wait_until(lambda: is_listening(f"http://127.0.0.1:{port}"))
        get = [("GET", "/courses"), ("GET", "/health")] * 200
        for _ in range(2):
            assert {status for status, _ in ask_in_turn(f"http://127.0.0.1:{port}", get)} == {401, 200}
        lines, lost = 0, 0
        while lines + lost < 400:
            line = process.stdout.readline()
            lines += "GET /courses" in line
            lost += int((re.search(r" ([\d,]+) lines lost", line) or [0, "0"])[1])
        assert lines + lost == 400 and lost > 0
        ask_in_turn(f"http://127.0.0.1:{port}", get)
        process.terminate()
        assert process.wait(20) == 0


# -- Open files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "connections"),
    [
        ((1024, 1_048_576), (2100, 1_048_576), 2000),
        ((4096, 4096), (4096, 4096), 2000),
        ((256, 300), (300, 300), 200),
        ((256, 2**63 - 1), (2100, 2**63 - 1), 2000),  # unlimited on macOS, which refuses that as the soft limit
        ((256, -1), (2100, -1), 2000),  # unlimited on Linux
    ],
)
def test_as_many_files_may_be_open_as_connections_need(monkeypatch, before, after, connections):
    changes = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: changes.append(limits))
    assert server.connection_limit() == connections
    assert changes == [after]


# -- Threads and signals -----------------------------------------------------------------------------------------------


PROGRAM = """
import os
import course_api, database, server

def announce(owner, name):
    function = getattr(owner, name)

    def announcing(*args, **kwargs):
        os.write(1, f"{name}\\n".encode())
        return function(*args, **kwargs)

    setattr(owner, name, announcing)

announce(course_api.Course, "insert_course")
announce(server.Server, "add_task")
announce(database.db, "commit")
"""


@pytest.fixture
def slow(seeded, start):
    """A function that starts the API and so many writes, which another program's transaction holds up.

    Returns the API, a header, the writes, and a function that ends the transaction. The API runs some `code` first.
    """
    with contextlib.ExitStack() as stack:

        def slow(number, code="", **settings):
            api = start("-c", f"{PROGRAM}{code}\ncourse_api.main()\n", **settings)
            headers = api.bearer()
            other = sqlite3.connect(seeded, isolation_level=None, check_same_thread=False)
            stack.enter_context(contextlib.closing(other)).execute("BEGIN IMMEDIATE")
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(number))
            stack.callback(api.process.kill)  # before the pool waits for its threads
            courses = [NEW | {"code": f"SLOW{index}"} for index in range(number)]
            writes = []
            for course in courses:
                writes.append(pool.submit(api.request, "/courses", "POST", course, **headers))
                wait_until(lambda: "insert_course" in api.output)  # of the first, so that the others are behind it
            wait_until(lambda: api.output.count("add_task") == 1 + number)  # the login is the other one
            return api, headers, writes, lambda: other.execute("COMMIT")

        yield slow


@pytest.mark.parametrize(("number", "threads", "path"), [(3, "4", "/courses"), (24, "1", "/courses/CSE115")])
def test_slow_writes_hold_up_no_read_and_are_all_carried_out(slow, number, threads, path):
    api, headers, writes, finish = slow(number, THREADS=threads)
    assert {api.request(path, **headers)[0] for _ in range(20)} == {200}
    assert not any(write.done() for write in writes)
    finish()
    assert [write.result() for write in writes] == [(201, "")] * number


def find_slow(path):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT code FROM courses WHERE code LIKE 'SLOW%' ORDER BY code")
        return [code for (code,) in rows]


def test_writes_that_have_waited_are_committed_at_once_and_logged_one_by_one(slow, seeded):
    api, _, writes, finish = slow(6)
    earlier = api.output.count("commit")
    finish()
    assert [write.result() for write in writes] == [(201, "")] * 6
    assert find_slow(seeded) == [f"SLOW{index}" for index in range(6)]
    wait_until(lambda: sum(" faisal POST /courses 201 0 bytes" in line for line in api.output) == 6)
    assert api.output.count("commit") == earlier + 1


COMMIT_FAILS = """
def fail():
    raise course_api.peewee.OperationalError("disk I/O error")

course_api.prepare()
database.db.commit = fail
course_api.prepare = lambda: None
"""


def test_writes_whose_common_commit_fails_are_stored_one_by_one(slow, seeded):
    api, _, writes, finish = slow(6, COMMIT_FAILS)
    finish()
    assert [write.result() for write in writes] == [(201, "")] * 6
    assert find_slow(seeded) == [f"SLOW{index}" for index in range(6)]
    wait_until(lambda: sum(" POST /courses 201 " in line for line in api.output) == 6)
    assert api.output.count("insert_course") == 11  # five of them twice
    assert not any(" ERROR " in line for line in api.output)


@pytest.mark.parametrize("action", ["ABORT", "ROLLBACK"])
def test_a_write_that_fails_undoes_none_that_waits_with_it(slow, seeded, action):
    with contextlib.closing(sqlite3.connect(seeded)) as connection:
        fault = f"WHEN NEW.code = 'SLOW3' BEGIN SELECT RAISE({action}, 'a fault'); END"
        connection.execute(f"CREATE TRIGGER fault BEFORE INSERT ON courses {fault}")
    api, _, writes, finish = slow(6)
    finish()
    assert [write.exception() is None for write in writes] == [index != 3 for index in range(6)]  # no 500 is described
    assert find_slow(seeded) == [f"SLOW{index}" for index in range(6) if index != 3]
    wait_until(lambda: any(" 500 " in line for line in api.output))
    assert sum("unexpected error" in line for line in api.output) == 1


def test_all_who_wait_are_accepted_in_one_round_of_the_loop_which_is_long_under_load(start):
    api = start("-c", f"{PROGRAM}import loop\nannounce(loop.Sockets, 'poll')\ncourse_api.main()\n")
    with contextlib.ExitStack() as stack:
        api.process.send_signal(signal.SIGSTOP)
        waiting = [stack.enter_context(connect(api.url)) for _ in range(50)]
        earlier = api.output.count("poll")
        api.process.send_signal(signal.SIGCONT)
        waiting[-1].sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert waiting[-1].recv(65536).startswith(b"HTTP/1.1 200 OK")
        assert api.output.count("poll") < earlier + 25


COURSE, LIST = {"name": "N", "instructor": "I"}, [{"code": f"L{number}", "name": "N"} for number in range(3)]
KINDS_OF_WRITES = [  # path, method, body and headers; each depends on those before it
    ("/courses", "POST", NEW, {}),
    ("/courses", "POST", NEW, {}),  # 409
    ("/courses", "POST", "[not JSON", {"Content_Type": "application/json"}),
    ("/courses?dry_run=true", "POST", LIST, {}),
    ("/courses?skip_invalid=true", "POST", [*LIST, {"code": "L9"}], {}),
    ("/courses", "POST", [*LIST, {"code": "L8", "name": "N"}], {}),  # 409, and nothing is stored
    ("/courses/L0", "PUT", COURSE, {"Prefer": "return=representation"}),
    ("/courses/L0", "PATCH", {"name": "M"}, {"If_Match": '"0"'}),  # 412
    ("/courses/L0", "PATCH", {"name": "M"}, {}),
    ("/courses/L1", "DELETE", None, {}),
    ("/courses/L1", "DELETE", None, {}),  # 404
    ("/courses/L1", "PUT", COURSE, {"Authorization": "Bearer forged"}),
    ("/nowhere", "POST", {}, {}),
    ("/courses?update=true", "POST", LIST, {}),
]


def test_requests_that_wait_are_answered_as_if_each_came_alone(slow, seeded, start):
    alone = start(DATABASE_URL=f"sqlite:///{shutil.copy(seeded, seeded.with_name('alone.db'))}")
    bearer = alone.bearer()
    api, headers, (first,), finish = slow(1)
    assert alone.request("/courses", "POST", NEW | {"code": "SLOW0"}, **bearer) == (201, "")
    with concurrent.futures.ThreadPoolExecutor(len(KINDS_OF_WRITES)) as pool:
        waiting, earlier, commits = [], api.output.count("add_task"), api.output.count("commit")
        for path, method, body, more in KINDS_OF_WRITES:
            waiting.append(pool.submit(api.request, path, method, body, **headers | more))
            wait_until(lambda: api.output.count("add_task") == earlier + len(waiting))
        finish()
    assert first.result() == (201, "")
    for request, answer in zip(KINDS_OF_WRITES, waiting, strict=True):
        path, method, body, more = request
        assert answer.result() == alone.request(path, method, body, **bearer | more), request
    assert api.output.count("commit") == commits + 1
    assert api.request("/courses", **headers) == alone.request("/courses", **bearer)


def test_what_a_client_sends_while_its_request_waits_is_answered_after_it(slow):
    api, headers, (write,), finish = slow(1)
    earlier = api.output.count("add_task")
    with connect(api.url) as connection:
        request = "{} HTTP/1.1\r\nHost: a\r\nAuthorization: {}\r\n\r\n"
        connection.sendall(request.format("DELETE /courses/CSE115", headers["Authorization"]).encode())
        wait_until(lambda: api.output.count("add_task") == earlier + 1)
        connection.sendall(request.format("GET /courses/CSE115", headers["Authorization"]).encode())
        connection.shutdown(socket.SHUT_WR)
        finish()
        assert re.findall(rb"HTTP/1.1 (\d+) ", read_all(connection)) == [b"204", b"404"]
    assert write.result() == (201, "")


def test_writes_that_wait_behind_one_that_fails_fail_with_it_and_not_one_after_the_other(slow):
    api, headers, writes, finish = slow(6)
    wait_until(lambda: all(write.done() for write in writes))
    assert [write.result()[0] for write in writes] == [503] * 6
    assert api.output.count("insert_course") == 1  # only one has asked the database
    finish()
    assert api.request("/courses", "POST", NEW, **headers) == (201, "")


def test_a_signal_lets_a_request_finish_and_the_exit_status_is_0(slow):
    api, _, (write,), finish = slow(1)
    api.process.terminate()
    wait_until(lambda: not is_listening(api.url))
    with pytest.raises(concurrent.futures.TimeoutError):  # idle connections are closed before this request is answered
        write.result(server.LINGER_SECONDS + 0.1)
    assert api.process.poll() is None
    finish()
    assert write.result() == (201, "")
    assert api.wait() == 0
    assert "Stopped" in api.output[-1]


def test_a_stop_that_waits_for_a_request_does_not_keep_the_processor_busy(slow):
    api, _, (write,), finish = slow(1, "import loop\nannounce(loop.Sockets, 'poll')")
    earlier = api.output.count("poll")
    api.process.terminate()
    with pytest.raises(concurrent.futures.TimeoutError):
        write.result(server.LINGER_SECONDS + 0.1)
    finish()
    assert write.result() == (201, "")
    assert api.wait() == 0
    assert api.output.count("poll") < earlier + 100  # one in 50 ms, besides a few


def test_a_second_signal_stops_at_once(slow):
    api, _, (write,), _ = slow(1)
    api.process.terminate()
    wait_until(lambda: not is_listening(api.url))
    assert api.stop() == -signal.SIGTERM
    assert write.exception()


def test_after_the_signal_idle_connections_are_closed_and_what_has_arrived_is_answered(start):
    """A request that is half sent has arrived, and so has a connection that waits to be accepted."""
    api, request = start(), b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    with contextlib.ExitStack() as stack:
        idle, half = (stack.enter_context(connect(api.url)) for _ in range(2))
        idle.sendall(request.replace(b"GET", b"HEAD"))
        assert idle.recv(65536)
        half.sendall(request[:25])
        api.process.send_signal(signal.SIGSTOP)
        waiting = [stack.enter_context(connect(api.url)) for _ in range(5)]
        for connection in waiting:
            connection.sendall(request)
        api.process.terminate()
        api.process.send_signal(signal.SIGCONT)
        assert read_all(idle) == b""
        half.sendall(request[25:])
        response = read_all(half)
        assert response.startswith(b"HTTP/1.1 200 OK\r\n") and b"\r\nConnection: close\r\n" in response
        for connection in waiting:
            assert read_all(connection).startswith(b"HTTP/1.1 200 OK\r\n")
    assert api.wait() == 0


def test_ctrl_c_right_after_the_start_is_a_clean_stop(start):
    api = start()
    with connect(api.url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")  # a request that is half sent
        api.process.send_signal(signal.SIGINT)
        api.wait_for("Stopping; press Ctrl-C again to stop at once")
    assert api.wait() == 0


# -- Faults of the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", ["folder", "file"])
def test_what_cannot_be_written_is_named_with_the_user_and_stops_the_start(seeded, tmp_path, locked):
    """Not even root may pass over permissions here."""
    (tmp_path / "courses.db").chmod(0o444)
    tmp_path.chmod(0o555 if locked == "folder" else 0o777)
    drop_from_bounding_set, dac_override = 24, 1  # prctl(2), capabilities(7)
    done = subprocess.run(
        [sys.executable, ROOT / "course_api.py"],
        preexec_fn=lambda: ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0),
        capture_output=True,
        timeout=20,
        **process_options(tmp_path, {"PORT": "0"}),
    )
    line = refused(done)
    assert str(tmp_path) in line and (locked == "file" or f"user {os.getuid()}" in line)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one" * 100, b"SQLite format 3\0" * 300])
def test_a_file_that_is_no_database_stops_the_start_and_stays_as_it_is(run, tmp_path, content):
    (tmp_path / "courses.db").write_bytes(content)
    assert "courses.db" in refused(run("course_api.py", PORT="0"))
    assert (tmp_path / "courses.db").read_bytes() == content


def test_a_url_opens_the_file_that_it_names_with_a_journal_that_lets_reads_pass(start, tmp_path):
    start(DATABASE_URL=f"sqlite:///{tmp_path}/i#j.db")
    assert {path.name for path in tmp_path.iterdir()} == {"i#j.db", "i#j.db-wal", "i#j.db-shm"}


def test_a_database_that_is_damaged_is_a_503_until_it_is_whole_again(seeded, start):
    api = start()
    headers = api.bearer()
    with contextlib.closing(sqlite3.connect(seeded)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = seeded.read_bytes()
    seeded.write_bytes(sound[:100] + b"\xff" * (len(sound) - 100))
    statuses = {api.request("/courses", **headers)[0] for _ in range(8)}
    assert statuses <= {200, 503} and 503 in statuses
    assert " ERROR " in api.wait_for("the database is not available")
    seeded.write_bytes(sound)
    assert api.request("/courses/CSE115", **headers)[0] == 200
    assert api.request("/courses", "POST", NEW, **headers)[0] == 201
