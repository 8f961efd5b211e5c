"""The API as it is deployed: behind nginx and PgBouncer, below a prefix, with URLs as providers give them, restored."""

import contextlib
import json
import logging
import pathlib
import re
import tempfile
from urllib.parse import urlsplit

import pytest
import torture
from catalogue import COURSE, LOGIN, course, without_id
from servers import COMPRESSING, ask, compressing_proxy, execute, find_ports, new_database, nginx, pgbouncer, server_url

import database

pytestmark = pytest.mark.sqlite
integration = pytest.mark.integration
EMOJI = course("🎓", "Ünï 🐚 ✓", "Наука")


@pytest.fixture
def proxied(start, seeded, tmp_path):
    """A function that starts the API and nginx in front of it; returns the URL of nginx, and the API."""
    with contextlib.ExitStack() as stack:

        def proxied(settings, **options):
            api = start(**settings)
            return stack.enter_context(nginx(tmp_path, [urlsplit(api.url).port], **options)), api

        yield proxied


# -- Below a prefix ----------------------------------------------------------------------------------------------------


def check_prefix(url, prefix="/catalogue"):
    """Check that every address which the API gives out has the prefix."""
    status, headers, _ = ask(url, "GET", f"{prefix}/")
    assert (status, headers["Location"]) == (302, f"{prefix}/docs")
    bearer = {"Authorization": "Bearer " + ask(url, "POST", f"{prefix}/login", LOGIN)[2]}
    status, headers, _ = ask(url, "POST", f"{prefix}/courses", COURSE, bearer)
    assert (status, headers["Location"]) == (201, f"{prefix}/courses/AAS%20100")
    assert ask(url, "PUT", headers["Location"], COURSE, bearer)[0] == 204
    _, headers, _ = ask(url, "GET", f"{prefix}/courses?limit=1", None, bearer)
    links = re.findall("<([^>]*)>", headers["Link"])
    assert len(links) == 3 and all(link.startswith(f"{prefix}/courses?") for link in links)
    assert [ask(url, "GET", link, None, bearer)[0] for link in links] == [200] * 3
    status, headers, _ = ask(url, "DELETE", f"{prefix}/courses/AAS%20100", None, bearer)
    assert (status, headers["Location"]) == (204, f"{prefix}/courses/")
    assert "swagger_bundle.js" in ask(url, "GET", f"{prefix}/docs")[2]
    for path in ("/openapi.yaml", "/docs/swagger_bundle.js"):
        assert ask(url, "GET", f"{prefix}{path}")[0] == 200


@integration
@pytest.mark.parametrize("upstream", ["http://api", "http://api/"], ids=["kept", "stripped"])
def test_behind_a_proxy_every_address_has_the_prefix(proxied, upstream):
    url, _ = proxied({"URL_PREFIX": "/catalogue"}, location="/catalogue/", upstream=upstream)
    check_prefix(url)


def test_a_prefix_is_known_without_a_proxy_and_is_not_part_of_another_path(start, seeded):
    url = start(URL_PREFIX="/catalogue").url.removesuffix("/catalogue")
    check_prefix(url)
    assert ask(url, "GET", "/health")[0] == 200  # stripped
    assert ask(url, "GET", "/cataloguehealth")[0] == 404


def test_under_another_server_every_address_has_its_script_name(start, seeded):
    """The standard library's server, which only imports course_api:app."""
    api = start(
        "-c",
        "from wsgiref.simple_server import make_server\n"
        "from wsgiref.util import shift_path_info\n"
        "from course_api import app\n"
        "def below(environ, start_response):\n"
        "    assert shift_path_info(environ) == 'catalogue'\n"
        "    return app(environ, start_response)\n"
        "server = make_server('127.0.0.1', 0, below)\n"
        "print('Serving app on http://127.0.0.1:%d; ' % server.server_port, flush=True)\n"
        "server.serve_forever()\n",
    )
    check_prefix(api.url)


# -- Behind nginx ------------------------------------------------------------------------------------------------------


def check_conditions(url, bearer, encoding="gzip"):
    """Check that the ETag which a compressing proxy has changed is good for every condition; return it."""
    path, accept = "/courses/AAS%20100", {"Accept-Encoding": encoding}
    long = course(COURSE["code"], "\U0001f41a" * 120, "\U0001f41a" * 120)
    status, first, _ = ask(url, "POST", "/courses", long, bearer | accept | {"Prefer": "return=representation"})
    assert status == 201
    status, headers, _ = ask(url, "GET", path, None, bearer | accept)
    etag = headers["ETag"]
    assert (status, headers["Content-Encoding"]) == (200, encoding)
    assert ask(url, "GET", path, None, bearer | accept | {"If-None-Match": etag})[0] == 304
    assert ask(url, "PUT", path, COURSE, bearer | accept | {"If-None-Match": etag})[0] == 412
    assert ask(url, "PATCH", path, long, bearer | accept | {"If-Match": first["ETag"]})[0] == 204
    assert ask(url, "PUT", path, COURSE, bearer | accept | {"If-Match": etag})[0] == 204
    assert ask(url, "PUT", path, COURSE, bearer | accept | {"If-Match": etag})[0] == 412
    return etag


@integration
def test_an_etag_that_nginx_has_weakened_by_compressing_is_good_for_every_condition(proxied):
    url, api = proxied({})
    assert check_conditions(url, api.bearer()).startswith('W/"')


@integration
@pytest.mark.parametrize("name", COMPRESSING)
def test_an_etag_that_another_proxy_has_changed_is_good_for_every_condition(start, seeded, tmp_path, name):
    api = start()
    with compressing_proxy(tmp_path, name, urlsplit(api.url).port) as url:
        encoding = "br" if "brotli" in name else "gzip"
        etag = check_conditions(url, api.bearer(), encoding)
    assert etag.endswith(f'-{encoding}"') == ("apache2" in name)


@integration
def test_a_client_behind_nginx_is_limited_by_its_own_address_whatever_it_says(proxied):
    url, api = proxied({"TRUSTED_PROXY": "127.0.0.1"})

    def guess(number, source):
        header = {"X-Forwarded-For": f"192.0.2.{number}"}
        return ask(url, "POST", "/login", LOGIN | {"password": "wrong"}, header, source)[0]

    assert [guess(number, "127.0.0.2") for number in range(6)] == [400] * 5 + [429]
    assert guess(0, "127.0.0.3") == 400
    api.wait_for(" INFO 127.0.0.2 ")
    assert "192.0.2." not in "".join(api.output)


# -- Databases as providers give them ----------------------------------------------------------------------------------


@integration
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_pgbouncer_as_it_comes_may_stand_in_front_of_postgresql(serve, mode):
    with new_database(server_url("POSTGRES_URL")) as direct, pgbouncer(direct, mode) as url:
        api, _ = serve(DATABASE_URL=url)
        assert api.check_many_clients() == 62
        api.check_time_limit(direct)


@integration
@pytest.mark.parametrize(
    ("query", "environment"),
    [("?options=-csearch_path%3Dapp", {}), ("", {"PGOPTIONS": "-c search_path=app"})],
    ids=["URL", "PGOPTIONS"],
)
def test_seed_py_and_the_api_use_the_schema_that_the_options_name(serve, query, environment):
    with new_database(server_url("POSTGRES_URL")) as url:
        execute(url, "CREATE SCHEMA app")
        api, bearer = serve(DATABASE_URL=url + query, **environment)
        assert api.request("/courses", "POST", COURSE, **bearer)[0] == 201
        assert api.request("/courses", **bearer)[1].count('"code"') == 3
        api.check_time_limit(f"{url}?options=-csearch_path%3Dapp")  # our own limit is added
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
def test_text_is_utf_8_whatever_the_url_says(serve, server, query):
    with new_database(server_url(server)) as url:
        api, bearer = serve(DATABASE_URL=url + query)
        assert api.request("/courses", "POST", EMOJI, **bearer)[0] == 201
        assert without_id(json.loads(api.request("/courses/%F0%9F%8E%93", **bearer)[1])) == EMOJI


# -- Health and outages ------------------------------------------------------------------------------------------------


def test_health_is_503_while_the_courses_table_is_gone(stranger):
    database.db.execute_sql("ALTER TABLE courses RENAME TO away")
    try:
        stranger.get("/health", status=503)
    finally:
        database.db.execute_sql("ALTER TABLE away RENAME TO courses")
    stranger.get("/health", status=200)


@pytest.mark.parametrize(
    ("pragma", "words"),
    [
        ("max_page_count = 10", "the disk is full (database or disk is full)"),
        ("query_only = on", "the database is read-only"),
    ],
)
def test_a_full_or_read_only_sqlite_is_a_503_until_it_is_over(client, caplog, pragma, words):
    """Both hold for this connection, so that the next one also shows that this one is not used again."""
    rows = [COURSE | {"code": f"C {number}", "name": "n" * 120} for number in range(2000)]
    database.db.execute_sql(f"PRAGMA {pragma}")
    response = client.post_json("/courses", rows, status=503)
    assert response.headers["Retry-After"] == "1"
    ((_, level, line),) = caplog.record_tuples
    assert level == logging.ERROR and line.startswith(f"the database is not available: {words}")
    assert caplog.records[0].exc_info is None
    assert client.post_json("/courses", rows, status=201).json == {"created": 2000}


def test_a_login_without_the_limits_storage_says_what_is_away(start, seeded):
    api = start(LIMIT_STORAGE=f"redis://127.0.0.1:{find_ports(1)[0]}")
    status, headers, body = ask(api.url, "POST", "/login", LOGIN)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert json.loads(body) == {"error": "the login limit's storage is not available; try again soon"}
    status, body = api.request("/health")
    assert (status, json.loads(body)) == (503, {"error": "the login limit's storage is not available; try again soon"})
    warning = api.output[0].partition(" ")[2]
    assert warning.startswith(
        "WARNING the login limit's storage is not available, so that nobody can log in: Error 111"
    )
    assert api.request("/courses")[0] == 401  # the rest is served


# -- Kills, stops, restores and rolling updates ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torture.py leaves connections open
@pytest.mark.parametrize(
    "part",
    [
        torture.kill,
        torture.term,
        *(pytest.param(part, marks=integration) for part in (torture.restore, torture.rolling)),
    ],
)
def test_no_acknowledged_write_is_lost_and_no_request_is_dropped(part):
    with tempfile.TemporaryDirectory(prefix="course-api-") as folder:
        torture.run_seed(folder)
        print(part(pathlib.Path(folder), rounds=1))
