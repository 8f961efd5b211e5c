"""The programs in processes of their own, and the database that they and the tests use.

Importing this removes the settings of whoever runs the tests from the environment, and names a database there that is
the tests' own: import it before the code, which reads both.
"""

import atexit
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import urllib.parse

import description
from servers import ROOT, ask, ask_at_once, create_database, drop_database, locked, wait_until

FOLDER = tempfile.TemporaryDirectory(prefix="course-api-")
TEST_DATABASE_URL = os.environ.get("TEST_DATABASE_URL", "sqlite")
SQLITE = TEST_DATABASE_URL.startswith("sqlite")
PYTHON = (sys.executable, "-W", "error", "-W", "ignore::ResourceWarning")  # a process that ends closes its files
# Every setting's name. The file is not imported yet, since it would read them.
SETTINGS = re.findall(r'= setting\(\s*"([A-Z_]+)"', (ROOT / "settings.py").read_text())
for setting in SETTINGS:
    os.environ.pop(setting, None)
    os.environ.pop(f"{setting}_FILE", None)


# -- Databases ---------------------------------------------------------------------------------------------------------

DATABASES, CREATING = {}, threading.Lock()


def database_url(folder, name="courses"):
    """Return the URL of a database of the kind under test, a new one for each folder and name."""
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

# -- Processes ---------------------------------------------------------------------------------------------------------


def process_options(folder, settings):
    """Return how every program is started: in a folder and on its database, with the settings."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": database_url(folder), **settings}
    return {"cwd": folder, "env": environment, "text": True}


def run_program(folder, program, *arguments, stdin="", **settings):
    """Run one of the programs to its end in a folder; return what subprocess.run returns."""
    command = [*PYTHON, ROOT / program, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=60, **process_options(folder, settings))


def run_bound(folder, program, *arguments, **settings):
    """Run a program to its end for whom permissions count, even if that is root."""
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    command = [*bound, *PYTHON, ROOT / program, *arguments]
    return subprocess.run(command, capture_output=True, timeout=60, **process_options(folder, settings))


def refused(done):
    """Return the one line with which a program has stopped."""
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "Serving" not in done.stdout
    return done.stderr


class Server:
    """`python course_api.py` in a folder of its own, or Python with other arguments; settings are given as keywords."""

    def __init__(self, folder, *arguments, **settings):
        self.launch([*PYTHON, *(arguments or [ROOT / "course_api.py"])], folder, {"PORT": "0", **settings})
        try:
            self.url = self.wait_for("Serving ").split(" on ")[1].split(";")[0]
        except BaseException:
            self.close()
            raise

    def launch(self, command, folder, settings, **options):
        """Start a process on the folder's database, and read what it says."""
        options |= process_options(folder, settings)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
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

    def settle(self):
        """Wait until the log's lines about all earlier requests have arrived."""
        path = f"/settle/{len(self.output)}"
        ask(self.url, "GET", path)
        wait_until(lambda: any(path in line for line in self.output))

    def request(self, path, method="GET", body=None, **headers):
        """Return the status and the body of a response, once it is checked against openapi.yaml."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        status, received, text = ask(self.url, method, path, body, headers)
        described = urllib.parse.unquote(path.partition("?")[0])
        description.check(method, described, status, received, text.encode(errors="surrogateescape"))
        return status, text

    def log_in(self, username="faisal", password="faisal"):
        """Return a token."""
        status, token = self.request("/login", "POST", {"username": username, "password": password})
        assert status == 200, token
        return token

    def bearer(self):
        """Return the header of a token, for request(**headers)."""
        return {"Authorization": f"Bearer {self.log_in()}"}

    def check_many_clients(self):
        """Let 8 clients add courses, and read each back; return how many there are."""
        bearer = self.bearer()

        def write_and_read(number):
            course = {"code": f"C{number}", "name": "Many", "instructor": ""}
            written, _ = self.request("/courses", "POST", course, **bearer)
            read, _ = self.request(f"/courses/C{number}", **bearer)
            return written, read

        assert set(ask_at_once(write_and_read, 60)) == {(201, 200)}
        return self.request("/courses", **bearer)[1].count('"code"')

    def check_time_limit(self, url):
        """Check that a write which waits for a lock in the database at a URL is given up, and leaves no trace."""
        path, bearer = "/courses/CSE115", self.bearer()
        with locked(url):
            assert self.request(path, "PATCH", {"name": "Changed"}, **bearer)[0] == 503
        assert "Introduction to programming" in self.request(path, **bearer)[1]
        assert self.request(path, "PATCH", {"name": "Changed"}, **bearer)[0] == 204

    def wait(self, seconds=20):
        """Return the exit status."""
        status = self.process.wait(seconds)
        self.reader.join(seconds)
        return status

    def stop(self):
        """Stop with SIGTERM; return the exit status."""
        self.process.terminate()
        return self.wait()

    def close(self):
        self.process.kill()
        self.wait()
        self.process.stdout.close()
