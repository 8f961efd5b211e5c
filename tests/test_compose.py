"""compose.yaml and nginx.conf, as Compose and nginx themselves take them."""

import contextlib
import http.client
import http.server
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading

import pytest
import yaml
from conftest import ROOT
from servers import find_ports
from test_rolling import NGINX, configure, proxy

import course_api

SECRETS = {"SECRET_KEY": "k" * 64, "POSTGRES_PASSWORD": "p" * 48}
pytestmark = pytest.mark.sqlite  # once, that is: no database is asked
needs_nginx = pytest.mark.skipif(not NGINX, reason="needs nginx: apt-get install nginx")


def configure_services(secrets):
    """Let Compose read the file with these secrets, and with no others."""
    command = ["docker-compose"]
    if shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        command = ["docker", "compose"]
    assert shutil.which(command[0]), "needs Docker Compose: apt-get install docker-compose"
    environment = {name: value for name, value in os.environ.items() if name not in SECRETS} | secrets
    with tempfile.NamedTemporaryFile() as empty:  # instead of .env
        command += ["--env-file", empty.name, "--file", ROOT / "deploy/compose.yaml", "config"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def services():
    done = configure_services(SECRETS)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


@pytest.mark.parametrize("name", SECRETS)
def test_without_a_secret_compose_refuses_and_says_how_to_make_one(name):
    done = configure_services({other: value for other, value in SECRETS.items() if other != name})
    assert done.returncode != 0
    assert name in done.stderr and "make one with openssl rand" in done.stderr


def test_only_the_proxy_is_published_and_it_reaches_nothing_but_the_api(services):
    assert [name for name, service in services.items() if service.get("ports")] == ["proxy"]
    ways = set(services["proxy"]["networks"])
    assert {name for name, service in services.items() if ways & set(service["networks"])} == {"api", "proxy"}


def test_each_service_that_another_waits_for_has_a_check_of_its_health(services):
    for service in services.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == "service_healthy"
            assert services[name]["healthcheck"]


def test_the_api_can_be_scaled_and_is_set_up_by_names_that_it_knows(services):
    assert not services["api"].keys() & {"container_name", "ports"}
    known = {*course_api.Settings.__struct_fields__, "DATABASE_URL"}
    assert set(services["api"]["environment"]) <= known


@needs_nginx
def test_nginx_takes_its_configuration(tmp_path):
    port, copy = find_ports(2)
    command = [NGINX, "-t", "-e", "stderr", "-c", configure(tmp_path, port, [copy])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def alone(tmp_path):
    """The address of an nginx that finds no copy of the API."""
    with proxy(tmp_path, find_ports(1)) as address:
        yield address


def ask(address, method, path, headers=()):
    """Return an answer with its body."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        connection.request(method, path, headers=dict(headers))
        answer = connection.getresponse()
        return answer, json.loads(answer.read())


@needs_nginx
def test_nginx_answers_503_where_no_copy_does(alone):
    for method in ("GET", "POST", "DELETE"):
        answer, body = ask(alone, method, "/courses")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert answer.headers["Content-Type"] == "application/json"
        assert body.keys() == {"error"}


@needs_nginx
def test_nginx_refuses_too_large_a_body_and_says_how_large_one_may_be(alone):
    answer, body = ask(alone, "POST", "/courses", {"Content-Length": str(2 * course_api.MAX_BODY)})
    assert answer.status == 413
    assert body == {"error": f"the body is larger than {course_api.MAX_BODY} bytes"}


@needs_nginx
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET /problem HTTP/1.1\r\nHost: a\r\n\r\n", 404),
        (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 40_000), 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: %b\r\n\r\n" % (b"x" * 40_000), 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ],
)
def test_nginx_refuses_what_is_not_good_in_the_apis_shape(alone, sent, status):
    host, port = alone.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(sent)
        with contextlib.closing(http.client.HTTPResponse(connection)) as answer:
            answer.begin()
            assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json")
            assert json.loads(answer.read()).keys() == {"error"}


@needs_nginx
def test_the_api_learns_who_the_client_is_and_not_who_it_says_it_is(tmp_path):
    seen = []

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Api) as api, proxy(tmp_path, [api.server_port]) as address:
        threading.Thread(target=api.handle_request).start()
        ask(address, "GET", "/courses", {"X-Forwarded-For": "192.0.2.1", "Host": "courses.example"})
    (headers,) = seen
    assert headers.get_all("X-Forwarded-For") == ["127.0.0.1"]
    assert headers["Host"] == "courses.example"


@needs_nginx
def test_no_token_is_in_nginxs_log(tmp_path):
    with proxy(tmp_path, find_ports(1)) as address:
        ask(address, "GET", "/courses?token=very.secret.token")
    log = (tmp_path / "nginx.log").read_text()
    assert " GET /courses 503 " in log
    assert "secret" not in log
