"""The servers that tests use beside the API: databases of their own on those that run, or a whole PostgreSQL."""

import contextlib
import glob
import os
import pathlib
import random
import secrets
import shutil
import socket
import subprocess

import psycopg2.extensions
from playhouse import db_url

POSTGRES_URL = os.environ.get("POSTGRES_URL", "postgresql://postgres@127.0.0.1/postgres")
MARIADB_URL = os.environ.get("MARIADB_URL", "mysql://root@127.0.0.1/mysql")


def find_ports(number):
    """Return ports that nothing uses, of those below what the system gives to outgoing connections."""
    ports = set()
    while len(ports) < number:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


def ask_server(url, sql):
    """Run a statement on a database server, outside of any transaction, however long it takes."""
    wait = psycopg2.extensions.get_wait_callback()
    psycopg2.extensions.set_wait_callback(None)
    try:
        with contextlib.closing(db_url.connect(url)._connect()) as connection:
            connection.cursor().execute(sql)
    finally:
        psycopg2.extensions.set_wait_callback(wait)


def create_database(url, name):
    """Make a database on a server; return its address."""
    ask_server(url, f"CREATE DATABASE {name}")
    return f"{url.rpartition('/')[0]}/{name}"


def drop_database(url, name):
    ask_server(url, f"DROP DATABASE {name}" + " WITH (FORCE)" * url.startswith("postgres"))


@contextlib.contextmanager
def new_database(url):
    """Make a database on a server for the block; yield its address."""
    name = f"course_api_{secrets.token_hex(8)}"
    address = create_database(url, name)
    try:
        yield address
    finally:
        drop_database(url, name)


class Postgres:
    """A cluster in a folder of its own, on a free port."""

    programs = os.path.dirname(shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=""))

    def __init__(self, folder):
        self.user = "postgres" if os.geteuid() == 0 else None  # it does not run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.folder = pathlib.Path(folder, "cluster")
        (self.port,) = find_ports(1)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.do("initdb", "--username=postgres", "--no-sync", "--auth=trust")

    def do(self, program, *arguments):
        command = [f"{self.programs}/{program}", f"--pgdata={self.folder}", *arguments]
        subprocess.run(command, user=self.user, cwd="/", stdout=subprocess.DEVNULL, check=True)

    def start(self, action="start"):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self.do("pg_ctl", action, "--wait", "--silent", f"--options={options}", f"--log={self.folder}/log")

    def stop(self, mode="fast"):
        self.do("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")

    def send(self, number):
        """Send a signal to every process of the server."""
        main = self.folder.joinpath("postmaster.pid").read_text().split()[0]
        for process in (main, *pathlib.Path(f"/proc/{main}/task/{main}/children").read_text().split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), number)

    def is_inserting(self):
        """Return whether somebody inserts something just now."""
        with contextlib.closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'INSERT%'")
            return cursor.fetchone()[0] > 0
