"""nginx.conf and nginx-site.conf, as the distribution's nginx reads them."""

import contextlib
import http.client
import itertools
import json
import socket
import subprocess
import threading
from urllib.parse import urlsplit

import pytest
from servers import NGINX, ask, configure_nginx, configure_site, connect, find_ports, nginx, wait_until

import course_api

pytestmark = [pytest.mark.integration, pytest.mark.sqlite]


def site_options():
    return dict(zip(("redirect_port", "tls_port"), find_ports(2), strict=True), configure=configure_site)


@pytest.fixture(scope="module", params=["nginx.conf", "nginx-site.conf"])
def options(request):
    """The options of nginx() for each of the two files."""
    return site_options() if request.param == "nginx-site.conf" else {}


@pytest.fixture(scope="module")
def folder(options, tmp_path_factory):
    """The folder of nginx's configuration and log."""
    return tmp_path_factory.mktemp("nginx")


@pytest.fixture(scope="module")
def alone(folder, options):
    """The URL of an nginx that finds no copy of the API."""
    with nginx(folder, find_ports(1), **options) as url:
        yield url


# -- nginx' own responses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_nginx_answers_503_if_no_copy_does(alone, method):
    status, headers, body = ask(alone, method, "/courses")
    assert (status, headers["Retry-After"], headers["Content-Type"]) == (503, "1", "application/json")
    assert json.loads(body).keys() == {"error"}


def test_nginx_says_how_large_a_body_may_be(alone):
    status, _, body = ask(alone, "POST", "/courses", headers={"Content-Length": str(2 * course_api.MAX_UPLOAD)})
    assert (status, json.loads(body)) == (413, {"error": course_api.too_large(course_api.MAX_UPLOAD).body})


def test_nginx_takes_its_configuration_with_the_rate_limit_switched_on(alone, folder):
    for path in folder.glob("*.conf"):
        path.write_text(path.read_text().replace("# limit_req", "limit_req"))
    command = [NGINX, "-t", "-e", "stderr", "-c", folder / "nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
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
def test_nginx_refuses_bad_requests_in_the_apis_shape(alone, folder, sent, status):
    if "location = /course-api-problem" in "".join(path.read_text() for path in folder.glob("*.conf")):
        sent = sent.replace(b"/problem", b"/course-api-problem")
    with connect(alone) as connection:
        connection.sendall(sent)
        with contextlib.closing(http.client.HTTPResponse(connection)) as response:
            response.begin()
            assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
            assert json.loads(response.read()).keys() == {"error"}


def test_no_token_is_in_nginxs_log(alone, folder):
    ask(alone, "GET", "/logged?token=very.secret.token")

    def read_logs():
        return "".join(path.read_text() for path in folder.glob("*.log"))

    wait_until(lambda: " GET /logged " in read_logs())
    assert "secret" not in read_logs()


# -- Copies that stop --------------------------------------------------------------------------------------------------


class Copy:
    """A stand-in for a copy of the API that answers each request with 200, or hangs up at the nth of a connection."""

    def __init__(self, hangs_up_at=0, backlog=100):
        self.hangs_up_at = hangs_up_at
        self.requests = self.connections = self.hung_up = 0
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=backlog)
        self.port = self.socket.getsockname()[1]

    def start(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def accept(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.respond, args=[connection], daemon=True).start()

    def respond(self, connection):
        self.connections += 1
        with contextlib.suppress(OSError), connection:
            for number in itertools.count(1):
                if not connection.recv(65536):
                    return
                self.requests += 1
                if number == self.hangs_up_at:
                    self.hung_up += 1
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


@contextlib.contextmanager
def unreachable(seconds):
    """Yield a copy whose address drops attempts to connect for so many seconds, because its queue is full.

    So does the address of a container that is gone.
    """
    copy = Copy(backlog=0)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", copy.port))
        threading.Timer(seconds, copy.start).start()
        yield copy


def configure_impatient(*arguments):
    """Write nginx.conf with a shorter time to connect than the system takes until it tries again, which is a second."""
    path = configure_nginx(*arguments)
    path.write_text(path.read_text().replace("proxy_connect_timeout 1s", "proxy_connect_timeout 600ms"))
    return path


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_starts_again_if_the_last_copys_address_is_gone(tmp_path, method):
    with unreachable(0.4) as copy, nginx(tmp_path, [copy.port], configure=configure_impatient) as url:
        assert ask(url, method, "/courses")[0] == 200
        assert copy.requests == 1
    assert " 504 : 200" in (tmp_path / "nginx.log").read_text()


def test_a_post_that_may_have_been_carried_out_is_not_sent_again(tmp_path):
    copy = Copy(hangs_up_at=1).start()
    with nginx(tmp_path, [copy.port]) as url:
        status, headers, body = ask(url, "POST", "/courses", {})
        assert (status, headers["Retry-After"], copy.requests) == (503, "1", 1)
        assert "may have been made" in json.loads(body)["error"]


def test_a_get_is_sent_to_another_copy(tmp_path):
    copies = [Copy(hangs_up_at=1).start(), Copy().start()]
    with nginx(tmp_path, [copy.port for copy in copies]) as url:
        assert {ask(url, "GET", "/courses")[0] for _ in range(4)} == {200}
    assert copies[0].requests and copies[1].requests == 4


def test_an_upload_that_nginx_cannot_store_gets_503_and_others_are_served(tmp_path):
    """As when its /tmp is full."""
    copy = Copy().start()
    with nginx(tmp_path, [copy.port]) as url:
        (tmp_path / "body").rmdir()
        status, headers, body = ask(url, "POST", "/courses", "x" * (4 << 20))
        assert (status, headers["Retry-After"], copy.requests) == (503, "1", 0)
        assert json.loads(body).keys() == {"error"}
        assert ask(url, "POST", "/courses", {})[0] == 200


# -- The site of a host ------------------------------------------------------------------------------------------------


@pytest.fixture
def site(start, seeded, tmp_path):
    """The API behind the site; yields the API and the site's two other ports, and keeps to the folder's certificate."""
    api, options = start(TRUSTED_PROXY="127.0.0.1"), site_options()
    with nginx(tmp_path, [urlsplit(api.url).port], **options):
        yield api, options["redirect_port"], options["tls_port"]


def test_the_site_speaks_tls_and_http2_and_tells_the_api_who_asks(site, tmp_path):
    api, _, port = site
    url = f"https://courses.example.com:{port}"
    command = ["curl", "--silent", "--show-error", "--include", "--cacert", tmp_path / "fullchain.pem", "--http2"]
    command += ["--resolve", f"courses.example.com:{port}:127.0.0.1", "--header", "Content-Type: application/json"]
    command += ["--interface", "127.0.0.4", "--data", '{"username": "faisal", "password": "faisal"}', f"{url}/login"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("HTTP/2 200") and lines[-1].count(".") == 2
    assert "strict-transport-security: max-age=31536000" in lines
    api.wait_for(" INFO 127.0.0.4 ")


def test_the_site_leads_http_to_https_with_the_method_kept(site):
    _, port, _ = site
    status, headers, _ = ask(f"http://127.0.0.1:{port}", "POST", "/login")
    assert (status, headers["Location"]) == (308, "https://127.0.0.1/login")


def test_the_site_uses_a_connection_to_the_api_again(tmp_path):
    copy = Copy().start()
    with nginx(tmp_path, [copy.port], **site_options()) as url:
        assert [ask(url, "GET", "/courses")[0] for _ in range(20)] == [200] * 20
    assert copy.requests == 20 and copy.connections < 20  # each of nginx' processes has its own


def test_the_site_sends_a_get_again_if_the_api_closes_the_connection_but_no_post(tmp_path):
    copy = Copy(hangs_up_at=2).start()
    with nginx(tmp_path, [copy.port], **site_options()) as url:
        assert [ask(url, "GET", "/courses")[0] for _ in range(20)] == [200] * 20
        assert copy.hung_up
        before = copy.hung_up
        statuses = [ask(url, "POST", "/courses", {})[0] for _ in range(20)]
    assert statuses.count(503) == copy.hung_up - before > 0
