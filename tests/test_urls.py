"""Each form of DATABASE_URL in docs/operations.md, on servers that refuse every connection of another kind."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest
from servers import ROOT, UNPRIVILEGED, execute, find_ports, make_certificate, own_postgres, running

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]
SECTION = (ROOT / "docs/operations.md").read_text().partition("## Other databases")[2].partition("\n## ")[0]
FORMS = re.findall(r"(?m)^\| `((?:postgresql|mariadb)://[^`]*)`", SECTION)
MARIADB_PROGRAMS = [
    shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") for name in ("mariadb-install-db", "mariadbd")
]


@pytest.fixture(scope="module")
def tls():
    """A folder with a certificate of localhost, which serves as the CA's and as a client's too, and one of another."""
    with tempfile.TemporaryDirectory(prefix="course-api-tls-") as folder:
        make_certificate(folder, "localhost")
        os.mkdir(f"{folder}/other")
        make_certificate(f"{folder}/other", "localhost")
        yield pathlib.Path(folder)


def give(tls, folder, user):
    """Copy the certificate and its key to the folder of a server that runs as a user."""
    for name in ("fullchain.pem", "privkey.pem"):
        copy = shutil.copy(tls / name, folder)
        os.chmod(copy, 0o600)
        if user:
            shutil.chown(copy, user)


@pytest.fixture(scope="module")
def postgresql(tls):
    """A PostgreSQL server with TLS on its port, and what takes the place of the words in a form."""
    with own_postgres() as server:
        give(tls, server.folder, UNPRIVILEGED)
        execute(server.url, "CREATE DATABASE courses")
        execute(server.url, "CREATE ROLE courses LOGIN SUPERUSER PASSWORD 'p@ss/w:rd'")
        execute(server.url, "CREATE ROLE localhost LOGIN SUPERUSER")  # as the certificate says
        with open(server.folder / "postgresql.conf", "a") as file:
            file.write("ssl = on\nssl_cert_file = 'fullchain.pem'\nssl_key_file = 'privkey.pem'\n")
            file.write("ssl_ca_file = 'fullchain.pem'\n")
        rules = "local all all trust\nhostssl all localhost all cert\nhostssl all courses all scram-sha-256\n"
        (server.folder / "pg_hba.conf").write_text(rules)
        server.start("restart")
        (closed,) = find_ports(1)
        yield {
            "user@/courses?host=/run/postgresql": f"courses@/courses?host={server.folder}&port={server.port}",
            "db1.example.com,db2.example.com": "localhost,localhost",
            "port=5432,5433": f"port={closed},{server.port}",
            "db.example.com:5433/": f"localhost:{server.port}/",
            "db.example.com/": f"localhost:{server.port}/",
        }


@pytest.fixture(scope="module")
def mariadb(tls):
    """A MariaDB server with TLS, and what takes the place of the words in a form."""
    if not all(MARIADB_PROGRAMS):
        pytest.skip("install MariaDB's server: apt-get install mariadb-server")
    install, daemon = MARIADB_PROGRAMS
    user = "mysql" if os.geteuid() == 0 else None
    (port,) = find_ports(1)
    with tempfile.TemporaryDirectory(prefix="course-api-mariadb-") as folder:
        give(tls, folder, user)
        if user:
            shutil.chown(folder, user)
        options = ["--no-defaults", f"--datadir={folder}/data"]
        command = [install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"]
        subprocess.run(command, user=user, cwd="/", check=True, capture_output=True, timeout=60)
        command = [daemon, *options, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={folder}/socket"]
        command += [f"--pid-file={folder}/pid", f"--ssl-cert={folder}/fullchain.pem", f"--ssl-key={folder}/privkey.pem"]
        command += [f"--ssl-ca={folder}/fullchain.pem"]
        with running(command, port, f"{folder}/log", user=user, cwd="/"):
            for sql in (
                "CREATE DATABASE courses",
                "CREATE USER courses@localhost IDENTIFIED BY 'p@ss/w:rd' REQUIRE SSL",
                "CREATE USER localhost@localhost REQUIRE X509",
                "CREATE USER local@localhost",
                *(f"GRANT ALL ON courses.* TO {name}@localhost" for name in ("courses", "localhost", "local")),
            ):
                execute(f"mysql://root@localhost/mysql?unix_socket={folder}/socket", sql)
            yield {
                "user@/courses?unix_socket=/run/mysqld/mysqld.sock": f"local@/courses?unix_socket={folder}/socket",
                "db.example.com:3307/": f"localhost:{port}/",
                "db.example.com/": f"localhost:{port}/",
            }


def fill_in(form, server, tls):
    """Return the URL that a form of the table is on a server."""
    words = server | {
        "user:password@": "courses:p%40ss%2Fw%3Ard@",
        "user@": "localhost@",
        "/etc/ssl/db-ca.pem": f"{tls}/fullchain.pem",
        "/etc/ssl/client.pem": f"{tls}/fullchain.pem",
        "/etc/ssl/client.key": f"{tls}/privkey.pem",
    }
    for word, replacement in words.items():
        form = form.replace(word, replacement)
    return form


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_the_url_in_the_documentation_works(serve, request, tls, form):
    url = fill_in(form, request.getfixturevalue(form.partition(":")[0]), tls)
    assert "example.com" not in url and "/etc/" not in url
    api, bearer = serve(DATABASE_URL=url)
    assert api.request("/courses", **bearer)[0] == 200


@pytest.mark.parametrize("form", [form for form in FORMS if "db-ca.pem" in form])
def test_a_server_whose_certificate_is_of_another_ca_is_refused_in_one_line(run, request, tls, form):
    url = fill_in(form, request.getfixturevalue(form.partition(":")[0]), tls)
    url = re.sub(r"((sslrootcert|ssl_ca)=[^&]*)/fullchain", r"\1/other/fullchain", url)
    done = run("seed.py", "users", DATABASE_URL=url)
    assert done.returncode == 1 and "certificate verify failed" in done.stderr and "Traceback" not in done.stderr
    assert "w:rd" not in done.stderr and "w%3Ard" not in done.stderr


def test_the_documentation_has_forms_of_both_servers():
    assert {form.partition(":")[0] for form in FORMS} == {"postgresql", "mariadb"} and len(FORMS) >= 10
