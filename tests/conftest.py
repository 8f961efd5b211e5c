"""Fixtures: the app on a database of its own, clients with and without a token, and the API as a real process."""

import atexit
import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest
import webtest

pytest.register_assert_rewrite("description")
import description  # noqa: E402
from servers import create_database, drop_database  # noqa: E402

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = tempfile.TemporaryDirectory(prefix="course-api-")
TEST_DATABASE_URL = os.environ.get("TEST_DATABASE_URL", "sqlite")
SQLITE = TEST_DATABASE_URL.startswith("sqlite")
PYTHON = (sys.executable, "-W", "error", "-W", "ignore::ResourceWarning")  # a process that ends closes its files
SETTINGS = ("HOST", "PORT", "URL_PREFIX", "DATABASE_URL", "SECRET_KEY", "TOKEN_SECONDS", "PUBLIC_READ", "LOGIN_LIMIT")
SETTINGS += ("LIMIT_STORAGE", "TRUSTED_PROXY", "CORS_ORIGINS", "THREADS", "LOG_LEVEL")
for setting in SETTINGS:
    os.environ.pop(setting, None)
    os.environ.pop(f"{setting}_FILE", None)


DATABASES, CREATING = {}, threading.Lock()


def database_url(folder, name="courses"):
    """Return the address of a database of the kind under test, a new one for each folder and name."""
    if SQLITE:
        return f"sqlite:///{folder}/{name}.db"
    with CREATING:
        if (folder, name) not in DATABASES:
            DATABASES[folder, name] = f"course_api_{os.getpid()}_{len(DATABASES)}"
            create_database(TEST_DATABASE_URL, DATABASES[folder, name])
    return f"{TEST_DATABASE_URL.rpartition('/')[0]}/{DATABASES[folder, name]}"


@atexit.register
def drop_databases():
    for database in DATABASES.values():
        drop_database(TEST_DATABASE_URL, database)


os.environ["DATABASE_URL"] = database_url(FOLDER.name)

import models  # noqa: E402 (reads the environment when it is imported)

models.init_db()

import course_api  # noqa: E402
import seed  # noqa: E402


class Client(webtest.TestApp):
    """A client that holds every answer to what openapi.yaml says of it."""

    def do_request(self, req, *args, **kwargs):
        path = req.environ["PATH_INFO"].encode("latin1").decode(errors="replace")
        answer = super().do_request(req, *args, **kwargs)
        description.check(req.method, path, answer.status_int, answer.headers, answer.body)
        return answer


def pytest_collection_modifyitems(config, items):
    """Leave out what needs no other database than SQLite when another one is tested."""
    if not SQLITE:
        left_out = [item for item in items if item.get_closest_marker("sqlite")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("sqlite")]


@pytest.fixture(scope="session", autouse=True)
def dummy_user():
    models.User.create_user(*seed.DUMMY_USER)
    yield
    models.database.close()
    FOLDER.cleanup()


@pytest.fixture
def app():
    course_api.storage.reset()
    models.User.delete().where(models.User.username != seed.DUMMY_USER[0]).execute()
    models.Course.delete().execute()
    for code, name, instructor in seed.DUMMY_COURSES:
        models.Course.add_course(code, instructor, name)
    return course_api.app


@pytest.fixture
def stranger(app):
    """A client without a token."""
    return Client(app)


@pytest.fixture
def client(app):
    """A client with a token, as a bearer header."""
    client = Client(app)
    client.authorization = ("Bearer", course_api.make_token("faisal"))
    return client


class Server:
    """`python course_api.py` in a folder of its own; settings are given as keywords."""

    def __init__(self, folder, program="course_api.py", **settings):
        self.launch([*PYTHON, ROOT / program], folder, {"PORT": "0", **settings})
        try:
            self.url = self.wait_for("Serving ").split(" on ")[1].split(";")[0]
        except BaseException:
            self.close()
            raise

    def launch(self, command, folder, settings, **options):
        """Start a process on the folder's database, and read what it says."""
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "DATABASE_URL": database_url(folder), **settings},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )
        self.output = []
        self.arrived = queue.Queue()
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.output.append(line.rstrip("\n"))
            self.arrived.put(line.rstrip("\n"))
        self.arrived.put(None)

    def wait_for(self, text, seconds=20):
        """Return the next line of output that holds `text`."""
        while True:
            try:
                line = self.arrived.get(timeout=seconds)
            except queue.Empty:
                raise AssertionError(f"no {text!r} in {self.output}") from None
            assert line is not None, f"ended without {text!r}: {self.output}"
            if text in line:
                return line

    def request(self, path, method="GET", body=None, **headers):
        """Return the status and the body of an answer; a body that is given is sent as JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            answer = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
        description.check(method, urllib.parse.unquote(path.partition("?")[0]), answer.status, answer.headers, body)
        return answer.status, body.decode()

    def log_in(self, username="faisal", password="faisal"):
        status, token = self.request("/login", "POST", {"username": username, "password": password})
        assert status == 200
        return token

    def wait(self, seconds=20):
        """Return the exit status."""
        status = self.process.wait(seconds)
        self.reader.join(seconds)
        return status

    def close(self):
        self.process.kill()
        self.wait()
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path):
    """A function that starts the API as a real process, stopped when the test ends."""
    with contextlib.ExitStack() as servers:

        def start(**settings):
            server = Server(tmp_path, **settings)
            servers.callback(server.close)
            return server

        yield start


@pytest.fixture
def run(tmp_path):
    """A function that runs one of the programs to its end, in the folder that `start` uses."""

    def run(program, *arguments, stdin="", **settings):
        environment = {**os.environ, "DATABASE_URL": database_url(tmp_path), **settings}
        command = [*PYTHON, ROOT / program, *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=30
        )

    return run
