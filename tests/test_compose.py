"""compose.yaml and nginx.conf, as Compose and nginx themselves read them."""

import contextlib
import http.client
import json
import os
import shutil
import subprocess

import pytest
import yaml
from processes import ROOT, SETTINGS
from servers import NGINX, ask, connect, find_ports, nginx, wait_until

import course_api

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]

# -- compose.yaml ------------------------------------------------------------------------------------------------------


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
        assert not environment.keys() & {"SECRET_KEY", "DATABASE_URL", "POSTGRES_PASSWORD"}
        mounted = {secret["source"] for secret in services[name]["secrets"]}
        files = {path for variable, path in environment.items() if variable.endswith("_FILE")}
        assert files and {path.removeprefix("/run/secrets/") for path in files} <= mounted


# -- nginx.conf --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of nginx's configuration and log."""
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def alone(folder):
    """The URL of an nginx that finds no copy of the API."""
    with nginx(folder, find_ports(1)) as url:
        yield url


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_nginx_answers_503_if_no_copy_does(alone, method):
    status, headers, body = ask(alone, method, "/courses")
    assert (status, headers["Retry-After"], headers["Content-Type"]) == (503, "1", "application/json")
    assert json.loads(body).keys() == {"error"}


def test_nginx_says_how_large_a_body_may_be(alone):
    status, _, body = ask(alone, "POST", "/courses", headers={"Content-Length": str(2 * course_api.MAX_BODY)})
    assert status == 413 and f"larger than {course_api.MAX_BODY} bytes" in json.loads(body)["error"]


def test_nginx_takes_its_configuration_with_the_rate_limit_switched_on(alone, folder):
    path = folder / "limited.conf"
    path.write_text((folder / "nginx.conf").read_text().replace("# limit_req", "limit_req"))
    done = subprocess.run([NGINX, "-t", "-e", "stderr", "-c", path], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /problem HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 40_000), 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: %b\r\n\r\n" % (b"x" * 40_000), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_nginx_refuses_bad_requests_in_the_apis_shape(alone, sent, status):
    with connect(alone) as connection:
        connection.sendall(sent)
        with contextlib.closing(http.client.HTTPResponse(connection)) as response:
            response.begin()
            assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
            assert json.loads(response.read()).keys() == {"error"}


def test_no_token_is_in_nginxs_log(alone, folder):
    ask(alone, "GET", "/logged?token=very.secret.token")
    log = folder / "nginx.log"
    wait_until(lambda: " GET /logged " in log.read_text())
    assert "secret" not in log.read_text()
