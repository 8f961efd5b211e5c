"""The API as it is deployed: behind nginx and PgBouncer, below a prefix, with URLs as providers give them, restored."""

import concurrent.futures
import contextlib
import json
import pathlib
import re
import sqlite3
import tempfile

import pytest
import torture
from conftest import ROOT
from servers import ask, execute, find_ports, locked, new_database, nginx, pgbouncer, server_url

pytestmark = pytest.mark.sqlite
integration = pytest.mark.integration
COURSE = {"code": "AAS 100", "name": "Intro Asian American Studies", "instructor": "Geng, Zhe"}
EMOJI = {"code": "🎓", "name": "Ünï 🐚 ✓", "instructor": "Наука"}


def log_in(url):
    """Return the header of a token that a URL gives to the dummy user."""
    status, _, token = ask(url, "POST", "/login", {"username": "faisal", "password": "faisal"})
    assert status == 200, token
    return {"Authorization": f"Bearer {token}"}


def port(api):
    return int(re.search(r":(\d+)", api.url.removeprefix("http:"))[1])


# -- Below a prefix ----------------------------------------------------------------------------------------------------


def check_prefix(url, prefix):
    """Check that every address which the API gives out has the prefix."""
    status, headers, _ = ask(url, "GET", f"{prefix}/")
    assert (status, headers["Location"]) == (302, f"{prefix}/docs")
    _, _, token = ask(url, "POST", f"{prefix}/login", {"username": "faisal", "password": "faisal"})
    bearer = {"Authorization": f"Bearer {token}"}
    status, headers, _ = ask(url, "POST", f"{prefix}/courses", COURSE, bearer)
    assert (status, headers["Location"]) == (201, f"{prefix}/courses/AAS%20100")
    assert ask(url, "PUT", headers["Location"], COURSE, bearer)[:1] == (204,)
    _, headers, _ = ask(url, "GET", f"{prefix}/courses?limit=1", None, bearer)
    links = re.findall("<([^>]*)>", headers["Link"])
    assert len(links) == 3 and all(link.startswith(f"{prefix}/courses?") for link in links)
    assert [ask(url, "GET", link, None, bearer)[0] for link in links] == [200] * 3
    status, headers, _ = ask(url, "DELETE", f"{prefix}/courses/AAS%20100", None, bearer)
    assert (status, headers["Location"]) == (204, f"{prefix}/courses/")
    page = ask(url, "GET", f"{prefix}/docs")[2]
    assert "swagger_bundle.js" in page and ask(url, "GET", f"{prefix}/openapi.yaml")[0] == 200
    assert ask(url, "GET", f"{prefix}/docs/swagger_bundle.js")[0] == 200


@integration
@pytest.mark.parametrize("upstream", ["http://api", "http://api/"], ids=["kept", "stripped"])
def test_behind_a_proxy_every_address_has_the_prefix(run, start, tmp_path, upstream):
    run("seed.py")
    api = start(URL_PREFIX="/catalogue")
    with nginx(tmp_path, [port(api)], location="/catalogue/", upstream=upstream) as url:
        check_prefix(url, "/catalogue")


def test_a_prefix_is_known_without_a_proxy_and_is_not_part_of_another_path(run, start):
    run("seed.py")
    api = start(URL_PREFIX="/catalogue")
    url = api.url.removesuffix("/catalogue")
    check_prefix(url, "/catalogue")
    assert ask(url, "GET", "/health")[0] == 200  # stripped
    assert ask(url, "GET", "/cataloguehealth")[0] == 404


def test_under_another_server_every_address_has_its_script_name(run, start, tmp_path):
    """The standard library's server, which only imports course_api:app."""
    run("seed.py")
    (tmp_path / "serve.py").write_text(
        "from wsgiref.simple_server import make_server\n"
        "from wsgiref.util import shift_path_info\n"
        "from course_api import app\n"
        "def below(environ, start_response):\n"
        "    assert shift_path_info(environ) == 'catalogue'\n"
        "    return app(environ, start_response)\n"
        "server = make_server('127.0.0.1', 0, below)\n"
        "print('Serving app on http://127.0.0.1:%d; ' % server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    check_prefix(start(program=tmp_path / "serve.py", PYTHONPATH=str(ROOT)).url, "/catalogue")


# -- Behind nginx ------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxied(run, start, tmp_path):
    """The URL of nginx in front of an API that trusts it."""
    run("seed.py")
    api = start(TRUSTED_PROXY="127.0.0.1")
    with nginx(tmp_path, [port(api)]) as url:
        yield url, api


@integration
def test_an_etag_that_nginx_has_weakened_by_compressing_is_good_for_both_conditions(proxied):
    url, _ = proxied
    bearer = log_in(url)
    course = COURSE | {"name": "\U0001f41a" * 120, "instructor": "\U0001f41a" * 120}
    assert ask(url, "POST", "/courses", course, bearer)[0] == 201
    status, headers, _ = ask(url, "GET", "/courses/AAS%20100", None, bearer | {"Accept-Encoding": "gzip"})
    assert (status, headers["Content-Encoding"]) == (200, "gzip") and headers["ETag"].startswith('W/"')
    etag = headers["ETag"]
    assert ask(url, "GET", "/courses/AAS%20100", None, bearer | {"If-None-Match": etag})[0] == 304
    assert ask(url, "PUT", "/courses/AAS%20100", COURSE, bearer | {"If-Match": etag})[0] == 204
    assert ask(url, "PUT", "/courses/AAS%20100", COURSE, bearer | {"If-Match": etag})[0] == 412


@integration
def test_a_client_behind_nginx_is_limited_by_its_own_address_whatever_it_says(proxied):
    url, api = proxied
    wrong = {"username": "faisal", "password": "wrong"}

    def guess(number, source):
        return ask(url, "POST", "/login", wrong, {"X-Forwarded-For": f"192.0.2.{number}"}, source)[0]

    assert [guess(number, "127.0.0.2") for number in range(6)] == [400] * 5 + [429]
    assert guess(0, "127.0.0.3") == 400
    api.wait_for(" INFO 127.0.0.2 ")
    assert "192.0.2." not in "".join(api.output)


# -- Databases as providers give them ----------------------------------------------------------------------------------


@integration
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pgbouncer_as_it_comes_may_stand_in_front_of_postgresql(run, start, mode):
    with new_database(server_url("POSTGRES_URL")) as direct, pgbouncer(direct, mode) as url:
        assert run("seed.py", DATABASE_URL=url).returncode == 0
        api = start(DATABASE_URL=url)
        bearer = log_in(api.url)

        def write_and_read(number):
            written = api.request("/courses", "POST", COURSE | {"code": f"C{number}"}, **bearer)[0]
            return written, api.request(f"/courses/C{number}", **bearer)[0]

        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            assert set(clients.map(write_and_read, range(100))) == {(201, 200)}
        with locked(direct):
            assert api.request("/courses/CSE115", "PATCH", {"name": "Changed"}, **bearer)[0] == 503
        assert api.request("/courses/CSE115", "PATCH", {"name": "Changed"}, **bearer)[0] == 204


@integration
@pytest.mark.parametrize(
    ("query", "environment"),
    [("?options=-csearch_path%3Dapp", {}), ("", {"PGOPTIONS": "-c search_path=app"})],
    ids=["URL", "PGOPTIONS"],
)
def test_seed_py_and_the_api_use_the_schema_that_the_options_name(run, start, query, environment):
    with new_database(server_url("POSTGRES_URL")) as url:
        execute(url, "CREATE SCHEMA app")
        settings = {"DATABASE_URL": url + query} | environment
        assert run("seed.py", **settings).returncode == 0
        api = start(**settings)
        bearer = log_in(api.url)
        assert api.request("/courses", "POST", COURSE, **bearer)[0] == 201
        assert api.request("/courses", **bearer)[1].count('"code"') == 3
        with locked(f"{url}?options=-csearch_path%3Dapp"):  # our own limit is added
            assert api.request("/courses/CSE115", "PATCH", {"name": "Changed"}, **bearer)[0] == 503
        assert execute(url, "SELECT count(*), to_regclass('public.courses') FROM app.courses") == [(3, None)]


@integration
@pytest.mark.parametrize(
    ("server", "query"),
    [
        ("MARIADB_URL", "?charset=utf8"),
        ("MARIADB_URL", "?charset=latin1"),
        ("POSTGRES_URL", "?client_encoding=latin1"),
    ],
)
def test_text_is_utf_8_whatever_the_url_says(run, start, server, query):
    with new_database(server_url(server)) as url:
        assert run("seed.py", DATABASE_URL=url + query).returncode == 0
        api = start(DATABASE_URL=url + query)
        bearer = log_in(api.url)
        assert api.request("/courses", "POST", EMOJI, **bearer)[0] == 201
        course = json.loads(api.request("/courses/%F0%9F%8E%93", **bearer)[1])
        assert course == EMOJI | {"id": course["id"]}


# -- Health and outages ------------------------------------------------------------------------------------------------


def test_health_is_503_while_the_courses_table_is_gone(run, start, tmp_path):
    run("seed.py")
    api = start()
    with contextlib.closing(sqlite3.connect(tmp_path / "courses.db")) as database:
        database.execute("ALTER TABLE courses RENAME TO away")
        assert api.request("/health")[0] == 503
        database.execute("ALTER TABLE away RENAME TO courses")
    assert api.request("/health")[0] == 200


def test_a_login_without_the_limits_storage_says_what_is_away(run, start):
    run("seed.py")
    api = start(LIMIT_STORAGE=f"redis://127.0.0.1:{find_ports(1)[0]}")
    status, headers, body = ask(api.url, "POST", "/login", {"username": "faisal", "password": "faisal"})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(body) == {"error": "the login limit's storage is not available; try again soon"}
    assert api.request("/health")[0] == 200


# -- Kills, stops, restores and rolling updates ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torture.py leaves connections open
@pytest.mark.parametrize(
    "part", [torture.kill, torture.term, torture.restore, pytest.param(torture.rolling, marks=integration)]
)
def test_no_acknowledged_write_is_lost_and_no_request_is_dropped(part):
    with tempfile.TemporaryDirectory(prefix="course-api-") as folder:
        torture.run_seed(folder)
        print(part(pathlib.Path(folder), rounds=1))
