"""compose.yaml, as Compose itself reads it."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from processes import ROOT, SETTINGS

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]


@pytest.fixture(scope="module")
def document():
    """What Compose makes of the file."""
    command = ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        command = ["docker", "compose"]
    if not shutil.which(command[0]):
        pytest.skip("install Docker Compose: apt-get install docker-compose")
    command += ["--file", ROOT / "deploy/compose.yaml", "config"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


@pytest.fixture(scope="module")
def services(document):
    return document["services"]


def test_only_the_proxy_is_published_and_it_reaches_nothing_but_the_api(services):
    assert [name for name, service in services.items() if service.get("ports")] == ["proxy"]
    networks = set(services["proxy"]["networks"])
    assert {name for name, service in services.items() if networks & set(service["networks"])} == {"api", "proxy"}


def test_each_service_that_another_waits_for_has_a_health_check(services):
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_healthy"
            assert services[name]["healthcheck"]


def test_the_api_can_be_scaled_and_gets_settings_that_it_knows(services):
    assert not services["api"].keys() & {"container_name", "ports"}
    assert {name.removesuffix("_FILE") for name in services["api"]["environment"]} <= set(SETTINGS)


def test_every_secret_is_a_file_that_is_neither_in_the_repository_nor_in_the_environment(document, services):
    assert document["secrets"]
    for secret in document["secrets"].values():
        file = os.path.relpath(secret["file"], ROOT)
        assert file.startswith("deploy/secrets/")
        assert subprocess.run(["git", "-C", ROOT, "check-ignore", "--quiet", file]).returncode == 0, file
    for name in ("api", "db"):
        environment = services[name]["environment"]
        assert not any(environment.get(name) for name in ("SECRET_KEY", "DATABASE_URL", "POSTGRES_PASSWORD"))
        mounted = {secret["source"] for secret in services[name]["secrets"]}
        files = {path for variable, path in environment.items() if variable.endswith("_FILE")}
        assert files and {path.removeprefix("/run/secrets/") for path in files} <= mounted


def read_size(text):
    """Return a size such as 64m in bytes."""
    number, unit = re.fullmatch(r"(\d+)([kmg]?)", str(text)).groups()
    return int(number) << {"": 0, "k": 10, "m": 20, "g": 30}[unit]


def test_every_service_has_a_limit_of_memory_that_holds_its_temporary_files(services):
    """Files in a tmpfs count as memory."""
    for service in services.values():
        sizes = [read_size(re.search(r"size=(\w+)", mount)[1]) for mount in service.get("tmpfs", [])]
        assert sum(sizes) <= read_size(service["mem_limit"]) / 2


def test_the_apis_user_can_write_temporary_files(services):
    text = (ROOT / "Dockerfile").read_text()
    user, folder = re.search(r"(?m)^USER (\d+)", text)[1], re.search(r"TMPDIR=(\S+)", text)[1]
    (mount,) = services["api"]["tmpfs"]
    assert mount.startswith(f"{folder}:") and f"uid={user}" in mount
