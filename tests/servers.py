"""The servers that tests use beside the API: proxies, PgBouncer, a PostgreSQL of their own, and new databases."""

import concurrent.futures
import contextlib
import glob
import http.client
import json
import os
import pathlib
import random
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from urllib.parse import urlsplit

import pytest
from playhouse import db_url

ROOT = pathlib.Path(__file__).parent.parent
NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
PGBOUNCER = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
EXAMPLES = {
    "POSTGRES_URL": "postgresql://postgres@127.0.0.1/postgres",
    "MARIADB_URL": "mysql://root@127.0.0.1/mysql",
    "REDIS_URL": "redis://127.0.0.1:6379/8",
}
# What must not run as root runs as this user.
UNPRIVILEGED = "postgres" if os.geteuid() == 0 else None


def server_url(name):
    """Return the address of a server that an environment variable names; skip the test without it."""
    return os.environ.get(name) or pytest.skip(f"set {name} to the address of a server, such as {EXAMPLES[name]}")


# -- Connections -------------------------------------------------------------------------------------------------------


def find_ports(number):
    """Return unused ports, from below the range that the system gives to outgoing connections."""
    ports = set()
    while len(ports) < number:
        port = random.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.add(port)
    return list(ports)


def connect(url):
    """Return a plain socket, connected to the server of a URL."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def read_all(connection):
    """Return what the server sends until it closes."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def ask(url, method, path, body=None, headers=(), source=""):
    """Return the status, the headers and the text of a response; a dict or a list is sent as JSON.

    `source` is the client's address. Bytes that are not UTF-8 become surrogates.
    """
    address = urlsplit(url)
    headers = dict(headers)
    if isinstance(body, dict | list):
        body = json.dumps(body)
        headers["Content-Type"] = "application/json"
    connection = http.client.HTTPConnection(address.netloc, timeout=20, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.request(method, address.path + path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode(errors="surrogateescape")


def ask_at_once(function, number, clients=8):
    """Return the results of function(0), function(1) and so on, called by several clients at once."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return list(pool.map(function, range(number)))


def ask_in_turn(url, requests):
    """Send requests, each (method, path, body, headers), on one connection, which the server must not close.

    Returns the status and the headers of each response.
    """
    responses = []
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)) as connection:
        for request in requests:
            connection.request(*request)
            response = connection.getresponse()
            response.read()
            responses.append((response.status, response.headers))
            assert connection.sock is not None, f"closed after {request}"
    return responses


def wait_until(condition, seconds=20):
    """Wait until a function returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} seconds in vain"
        time.sleep(0.01)
    return result


def is_listening(url):
    """Return whether a server accepts connections at a URL."""
    with contextlib.suppress(OSError), connect(url):
        return True
    return False


@contextlib.contextmanager
def running(command, port, log, **options):
    """Run a server for the block, from when it listens; its output goes to a file."""
    with open(log, "w") as output, subprocess.Popen(command, stdout=output, stderr=output, **options) as process:
        try:
            wait_until(lambda: process.poll() is not None or is_listening(f"http://127.0.0.1:{port}"))
            assert process.poll() is None, pathlib.Path(log).read_text()
            yield
        finally:
            process.terminate()


# -- nginx -------------------------------------------------------------------------------------------------------------


def rewrite(text, *changes):
    """Return a text with regular expressions replaced, each of which must be there."""
    for pattern, replacement in changes:
        text, found = re.subn(pattern, replacement, text)
        assert found, pattern
    return text


def configure_nginx(folder, port, copies, location="/", upstream="http://api"):
    """Write deploy/nginx.conf to a folder, changed to these ports, on which nginx and the copies of the API listen.

    Paths below `location` go to `upstream`. Returns the file's path.
    """
    text = rewrite(
        (ROOT / "deploy/nginx.conf").read_text(),
        (r"server api:5000 resolve(.*);", "\n".join(rf"server 127.0.0.1:{copy}\1;" for copy in copies)),
        (r"listen 8080;", f"listen 127.0.0.1:{port};"),
        (r" /tmp/", f" {folder}/"),
        (r"location / {\s+proxy_pass http://api;", f"location {location} {{ proxy_pass {upstream};"),
    )
    path = pathlib.Path(folder, "nginx.conf")
    path.write_text(text)
    return path


def make_certificate(folder, name):
    """Make a certificate for a host name and 127.0.0.1, signed by itself; return the paths of it and of its key."""
    certificate, key = f"{folder}/fullchain.pem", f"{folder}/privkey.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def configure_site(folder, port, copies, redirect_port, tls_port):
    """Write deploy/nginx-site.conf, and the distribution's nginx.conf that includes it, to a folder.

    The API listens on the only one of `copies`; `redirect_port` and `tls_port` take the place of 80 and 443. On `port`,
    nginx does the same as on `tls_port`, without TLS. Returns the main file's path.
    """
    (copy,) = copies
    make_certificate(folder, "courses.example.com")
    site = rewrite(
        (ROOT / "deploy/nginx-site.conf").read_text(),
        (r"server 127\.0\.0\.1:5000", f"server 127.0.0.1:{copy}"),
        (r"listen \[::\]:.*;\n", "\n"),
        (r"listen 80;", f"listen 127.0.0.1:{redirect_port};"),
        (r"listen 443 ssl http2;", f"listen 127.0.0.1:{tls_port} ssl http2; listen 127.0.0.1:{port};"),
        (r"/etc/letsencrypt/live/courses\.example\.com|/var/log/nginx", str(folder)),
    )
    pathlib.Path(folder, "site.conf").write_text(site)
    own = "".join(f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    text = rewrite(
        pathlib.Path("/etc/nginx/nginx.conf").read_text(),
        (r"(?m)^user .*;", ""),
        (r"(?m)^pid .*;", f"pid {folder}/nginx.pid;"),
        (r"/var/log/nginx", str(folder)),
        (r"include /etc/nginx/conf\.d/\*\.conf;", own),
        (r"/etc/nginx/sites-enabled/\*", f"{folder}/site.conf"),
    )
    path = pathlib.Path(folder, "nginx.conf")
    path.write_text(text)
    return path


@contextlib.contextmanager
def nginx(folder, copies, configure=configure_nginx, **options):
    """Run nginx in front of copies of the API at these ports for the block; yield its URL. Its log is nginx.log."""
    if not NGINX:
        pytest.skip("install nginx: apt-get install nginx")
    (port,) = find_ports(1)
    configuration = configure(folder, port, copies, **options)
    command = [NGINX, "-e", "stderr", "-c", configuration, "-g", "daemon off; user root;"]
    with running(command, port, pathlib.Path(folder, "nginx.log")):
        yield f"http://127.0.0.1:{port}"


# -- Other proxies, which compress -------------------------------------------------------------------------------------

APACHE = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
ErrorLog {folder}/apache.log
User www-data
Group www-data
{modules}
SetOutputFilter {filter}
ProxyPass / http://127.0.0.1:{api}/ nocanon
"""
APACHE_MODULES = ["mpm_event", "authz_core", "proxy", "proxy_http", "filter"]
HAPROXY = """
defaults
    mode http
    timeout connect 20s
    timeout client 20s
    timeout server 20s
    compression algo gzip
    compression type application/json
listen api
    bind 127.0.0.1:{port}
    server api 127.0.0.1:{api}
"""
CADDY = """
{{
    admin off
    auto_https off
}}
http://127.0.0.1:{port} {{
    encode zstd gzip
    reverse_proxy 127.0.0.1:{api}
}}
"""
COMPRESSING = {  # of each proxy: the program, its arguments before the configuration's path, the configuration
    "apache2, mod_deflate": ("apache2", ["-D", "FOREGROUND", "-f"], APACHE, {"filter": "DEFLATE"}),
    "apache2, mod_brotli": ("apache2", ["-D", "FOREGROUND", "-f"], APACHE, {"filter": "BROTLI_COMPRESS"}),
    "haproxy": ("haproxy", ["-db", "-f"], HAPROXY, {}),
    "caddy": ("caddy", ["run", "--adapter", "caddyfile", "--config"], CADDY, {}),
}


@contextlib.contextmanager
def compressing_proxy(folder, name, api):
    """Run one of the proxies of COMPRESSING in front of the API at a port for the block; yield its URL."""
    program, arguments, configuration, options = COMPRESSING[name]
    path = shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin")
    if not path:
        pytest.skip(f"install {program}: apt-get install {program}")
    (port,) = find_ports(1)
    modules = [*APACHE_MODULES, name.partition("mod_")[2]]
    lines = "\n".join(f"LoadModule {one}_module /usr/lib/apache2/modules/mod_{one}.so" for one in modules)
    file = pathlib.Path(folder, "proxy.conf")
    file.write_text(configuration.format(folder=folder, port=port, api=api, modules=lines, **options))
    environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with running([path, *arguments, file], port, pathlib.Path(folder, "proxy.log"), env=environment):
        yield f"http://127.0.0.1:{port}"


# -- Databases ---------------------------------------------------------------------------------------------------------


def execute(url, sql):
    """Run a statement on a database server, outside of any transaction; return the rows, if it has any."""
    with contextlib.closing(db_url.connect(url)._connect()) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        return cursor.fetchall() if cursor.description else []


def create_database(url, name):
    """Create a database on a server; return its URL."""
    execute(url, f"CREATE DATABASE {name}")
    return f"{url.rpartition('/')[0]}/{name}"


def drop_database(url, name):
    execute(url, f"DROP DATABASE {name}" + " WITH (FORCE)" * url.startswith("postgres"))


@contextlib.contextmanager
def new_database(url):
    """Create a database on a server for the block; yield its URL."""
    name = f"course_api_{secrets.token_hex(8)}"
    try:
        yield create_database(url, name)
    finally:
        drop_database(url, name)


@contextlib.contextmanager
def locked(url):
    """Lock the course CSE115 for the block, so that a statement which changes it waits."""
    database = db_url.connect(url)
    with contextlib.closing(database), database.atomic() as transaction:
        database.execute_sql("UPDATE courses SET name = 'Locked' WHERE code = 'CSE115'")
        yield
        transaction.rollback()


class Postgres:
    """A PostgreSQL server with its data in a folder, on a free port."""

    programs = os.path.dirname(shutil.which("initdb") or max(glob.glob("/usr/lib/postgresql/*/bin/initdb"), default=""))

    def __init__(self, folder):
        if not self.programs:
            pytest.skip("install PostgreSQL's server: apt-get install postgresql")
        if UNPRIVILEGED:
            shutil.chown(folder, UNPRIVILEGED)
        self.folder = pathlib.Path(folder, "cluster")
        (self.port,) = find_ports(1)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self.run("initdb", "--username=postgres", "--no-sync", "--auth=trust")

    def run(self, program, *arguments):
        command = [f"{self.programs}/{program}", f"--pgdata={self.folder}", *arguments]
        subprocess.run(command, user=UNPRIVILEGED, cwd="/", stdout=subprocess.DEVNULL, check=True)

    def start(self, action="start"):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self.run("pg_ctl", action, "--wait", "--silent", f"--options={options}", f"--log={self.folder}/log")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "stop", "--wait", "--silent", f"--mode={mode}")


@contextlib.contextmanager
def own_postgres():
    """Run a PostgreSQL server of its own for the block."""
    with tempfile.TemporaryDirectory(prefix="course-api-postgres-") as folder:
        postgres = Postgres(folder)
        postgres.start()
        try:
            yield postgres
        finally:
            postgres.stop("immediate")


class MariaDB:
    """A MariaDB server with its data in a folder, on a free port; `options` are its own."""

    install = shutil.which("mariadb-install-db")
    program = shutil.which("mariadbd", path=os.environ["PATH"] + ":/usr/sbin")
    user = "mysql" if os.geteuid() == 0 else None

    def __init__(self, folder, *options):
        if not (self.install and self.program):
            pytest.skip("install MariaDB's server: apt-get install mariadb-server")
        if self.user:
            shutil.chown(folder, self.user)
        self.folder, (self.port,) = pathlib.Path(folder, "data"), find_ports(1)
        self.url = f"mysql://root@127.0.0.1:{self.port}/mysql"
        base = ["--no-defaults", f"--datadir={self.folder}"]
        command = [self.install, *base, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(command, user=self.user, cwd="/", check=True, capture_output=True, timeout=60)
        self.command = [self.program, *base, f"--port={self.port}", "--bind-address=127.0.0.1"]
        self.command += [f"--socket={folder}/socket", f"--pid-file={folder}/pid", *options]

    def start(self):
        self.context = running(self.command, self.port, f"{self.folder.parent}/log", user=self.user, cwd="/")
        self.context.__enter__()

    def stop(self):
        self.context.__exit__(None, None, None)


@contextlib.contextmanager
def own_mariadb(*options):
    """Run a MariaDB server of its own for the block."""
    with tempfile.TemporaryDirectory(prefix="course-api-mariadb-") as folder:
        mariadb = MariaDB(folder, *options)
        mariadb.start()
        try:
            yield mariadb
        finally:
            mariadb.stop()


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """Mount a disk of this size on a folder for the block, which takes root."""
    options = f"size={megabytes}m,mode=0777"
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("run the tests as root, who may mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def full(folder):
    """Fill the disk of a folder for the block."""
    filler = pathlib.Path(folder, "filler")
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def pgbouncer(url, pool_mode):
    """Run PgBouncer as it comes in front of a PostgreSQL database for the block; yield the database's URL there."""
    if not PGBOUNCER:
        pytest.skip("install PgBouncer: apt-get install pgbouncer")
    (port,) = find_ports(1)
    parts = db_url.parse(url)
    target = " ".join(f"{name}={parts[name]}" for name in ("host", "port", "user", "password") if parts.get(name))
    with tempfile.TemporaryDirectory(prefix="course-api-pgbouncer-") as folder:
        if UNPRIVILEGED:
            shutil.chown(folder, UNPRIVILEGED)
        configuration = pathlib.Path(folder, "pgbouncer.ini")
        configuration.write_text(
            f"[databases]\n{parts['database']} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nauth_type = any\nunix_socket_dir =\npool_mode = {pool_mode}\n"
        )
        with running([PGBOUNCER, configuration], port, f"{folder}/log", user=UNPRIVILEGED):
            yield f"postgresql://{parts.get('user', 'postgres')}@127.0.0.1:{port}/{parts['database']}"
