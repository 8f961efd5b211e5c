"""The API in the environments of the Dockerfile, compose.yaml and the systemd unit, and the health check there."""

import contextlib
import json
import re
import shlex
import sqlite3
import subprocess
import sys

import pytest
import yaml
from servers import ROOT, find_ports

pytestmark = pytest.mark.sqlite
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
IMAGE = dict(word.split("=", 1) for line in re.findall(r"(?m)^ENV (.*)", DOCKERFILE) for word in shlex.split(line))
SERVICES = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
BUILT = [name for name, service in SERVICES.items() if "build" in service]
UNIT = (ROOT / "deploy/course-api.service").read_text()


def health_command():
    """Return the image's health check, as a list of words, with the file where the repository has it."""
    python, file = json.loads(re.search(r"(?m)^HEALTHCHECK .*CMD (\[.*\])", DOCKERFILE)[1])
    assert python == "python"
    return [sys.executable, ROOT / "deploy" / file]


@pytest.fixture
def launch(start, seeded, tmp_path):
    """A function that starts the API in an environment of a container, and returns it and its settings.

    Only what this machine does not have is changed: the folders, the port, and Redis' address.
    """
    secrets = {"secret_key": "k" * 32, "database_url": f"sqlite:///{seeded}"}
    for name, text in secrets.items():
        (tmp_path / name).write_text(f"{text}\n")

    def launch(environment, **changes):
        port, redis = find_ports(2)
        settings = {"PORT": str(port), **changes}
        for name, value in environment.items():
            place = re.sub(r"/run/secrets\b|/data\b", str(tmp_path), str(value))
            settings.setdefault(name, place.replace("redis:6379", f"127.0.0.1:{redis}"))
        return start(**settings), settings

    return launch


def check_health(settings):
    """Return the exit status of the image's health check, and what it prints."""
    environment = settings | {"PYTHONPATH": str(ROOT)}  # in the image, it lies beside the other programs
    done = subprocess.run(health_command(), env=environment, capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout + done.stderr


def test_the_image_copies_every_program():
    copied = re.findall(r"(?m)^COPY (.*) \./$", DOCKERFILE)
    assert "*.py" in " ".join(copied).split() and "!*.py" in (ROOT / ".dockerignore").read_text().split()


def test_the_api_starts_in_the_images_environment_and_is_healthy(launch, seeded):
    api, settings = launch(IMAGE)
    assert str(seeded) in api.output[-1]
    assert check_health(settings) == (0, '{"status": "ok"}\n')


@pytest.mark.parametrize("name", BUILT)
def test_the_api_starts_in_the_environment_of_each_service_of_compose(launch, tmp_path, seeded, name):
    (seeded.parent / "other.db").write_bytes(seeded.read_bytes())
    (tmp_path / "database_url").write_text(f"sqlite:///{seeded.parent}/other.db\n")
    api, settings = launch(IMAGE | SERVICES[name]["environment"], LIMIT_STORAGE="memory://")  # there is no Redis
    assert "/other.db" in api.output[-1]  # its database is the secret's, not the image's
    assert check_health(settings)[0] == 0
    assert SERVICES[name]["healthcheck"].keys().isdisjoint({"test", "disable"})


def test_the_systemd_units_environment_starts_the_api(start, tmp_path):
    settings = dict(word.split("=", 1) for line in re.findall(r"(?m)^Environment=(.*)", UNIT) for word in line.split())
    settings = {name: value.replace("/var/lib/course-api", str(tmp_path)) for name, value in settings.items()}
    assert f"{tmp_path}/courses.db" in start(**settings).output[-1]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.7", "127.0.0.7"), ("0.0.0.0", "127.0.0.1"), ("localhost", "localhost")],
)
def test_the_health_check_asks_where_the_api_listens(launch, host, address):
    _, settings = launch(IMAGE, HOST=host)
    assert check_health(settings) == (0, '{"status": "ok"}\n')


def test_the_health_check_asks_where_the_api_listens_on_ipv6_and_on_both(launch):
    for host in ("::1", "::", "*"):
        _, settings = launch(IMAGE, HOST=host)
        assert check_health(settings) == (0, '{"status": "ok"}\n')


def test_the_health_check_reads_the_files_that_the_api_reads(launch, tmp_path):
    _, settings = launch(IMAGE)
    (tmp_path / "port").write_text(f"{settings['PORT']}\r\n")
    (tmp_path / "host").write_text("\ufeff127.0.0.1\n")
    files = {"PORT_FILE": f"{tmp_path}/port", "HOST_FILE": f"{tmp_path}/host"}
    assert check_health(settings | {"PORT": "1", "HOST": "192.0.2.1"} | files) == (0, '{"status": "ok"}\n')


def test_the_health_check_says_why_it_fails(launch, seeded):
    api, settings = launch(IMAGE)
    with contextlib.closing(sqlite3.connect(seeded)) as database:
        database.execute("ALTER TABLE courses RENAME TO away")
    status, text = check_health(settings)
    assert status == 1 and "not available" in text
    api.stop()
    status, text = check_health(settings)
    assert status == 1 and text.startswith(f"no response from 0.0.0.0 port {settings['PORT']}: ")
    assert "Traceback" not in text
