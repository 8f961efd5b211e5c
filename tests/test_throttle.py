"""The login limit: whoever fails too often has to wait, and nobody else does."""

import os
import shutil
import subprocess
import time
from urllib.parse import quote

import bottle
import limits
import pytest
from catalogue import LOGIN
from description import check_error
from processes import ROOT
from servers import ask_at_once

import course_api
import models
import settings

WRONG = LOGIN | {"password": "wrong"}


def log_in(client, login=LOGIN, address="192.0.2.1", **options):
    return client.post_json("/login", login, extra_environ={"REMOTE_ADDR": address}, **options)


def fail(client, times=5, **options):
    for _ in range(times):
        log_in(client, WRONG, status=400, **options)


def test_after_five_failed_logins_this_name_from_this_address_has_to_wait(stranger):
    fail(stranger)
    for login in (WRONG, LOGIN):
        response = log_in(stranger, login, status=429)
        seconds = response.headers["Retry-After"]
        assert 290 <= int(seconds) <= 300
        check_error(response, f"too many failed logins; try again in {seconds} seconds")

    log_in(stranger, WRONG | {"username": "grace"}, status=400)
    log_in(stranger, LOGIN, "192.0.2.2", status=200)


def test_after_fifty_failed_logins_from_an_address_every_name_has_to_wait(stranger, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(models.User, "match_user", lambda *_: False)  # saves 50 hashes
        for number in range(50):
            log_in(stranger, WRONG | {"username": f"user{number}"}, status=400)
    log_in(stranger, LOGIN, status=429)
    log_in(stranger, LOGIN, "192.0.2.2", status=200)


def test_successful_logins_and_malformed_ones_are_not_counted(stranger):
    for _ in range(6):
        log_in(stranger, LOGIN, status=200)
    for _ in range(51):
        log_in(stranger, {"username": "faisal"}, status=400)
    log_in(stranger, LOGIN, status=200)


def test_the_window_moves(stranger, monkeypatch):
    start, now = time.time(), [0]
    monkeypatch.setattr(time, "time", lambda: start + now[0])
    for second in range(0, 50, 10):
        now[0] = second
        fail(stranger, 1)
    now[0] = 299
    assert log_in(stranger, WRONG, status=429).headers["Retry-After"] == "1"
    now[0] = 301
    fail(stranger, 1)
    assert log_in(stranger, WRONG, status=429).headers["Retry-After"] == "9"


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", 429),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", 200),
        ("192.0.2.1", "::ffff:192.0.2.1", 429),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", 200),
        ("fe80::1%eth0", "fe80::2%eth0", 429),
        ("unix:", "unix:", 429),
    ],
)
def test_a_network_of_ipv6_is_one_address(stranger, first, second, status):
    fail(stranger, address=first)
    log_in(stranger, LOGIN, second, status=status)


def test_too_many_logins_at_once_are_told_to_come_back(stranger, monkeypatch):
    monkeypatch.setattr(course_api, "login_slots", course_api.threading.BoundedSemaphore(1))
    with course_api.login_slots:
        response = log_in(stranger, status=503)
    check_error(response, "too many logins at once; try again soon")
    assert response.headers["Retry-After"] == "1"
    log_in(stranger, status=200)


@pytest.mark.sqlite
def test_a_flood_of_logins_does_not_queue_without_end(serve):
    api, _ = serve()
    answers = ask_at_once(lambda _: api.request("/login", "POST", LOGIN)[0], 64, clients=64)
    assert set(answers) == {200, 503}
    assert answers.count(200) >= course_api.MAX_LOGINS


# -- The log -----------------------------------------------------------------------------------------------------------

FORGED = ["grace hopper", "x from 192.0.2.7", "é\u2028\u202e", "%0A%1B[2J", "a/b?c#d"]


@pytest.mark.parametrize("name", FORGED)
def test_a_failed_login_is_logged_in_one_line_with_name_and_address_and_a_name_forges_nothing(stranger, caplog, name):
    wrong = {"username": name, "password": "wrong"}
    fail(stranger, 1)
    for _ in range(5):
        log_in(stranger, wrong, address="2001:db8::1", status=400)
    log_in(stranger, wrong, address="2001:db8::1", status=429)
    first, *failed, refused = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert first == ("WARNING", "failed login as faisal from 192.0.2.1")
    assert set(failed) == {("WARNING", f"failed login as {quote(name, safe='')} from 2001:db8::1")} and len(failed) == 5
    assert refused == ("WARNING", f"too many failed logins as {quote(name, safe='')} from 2001:db8::1")


@pytest.mark.parametrize("name", ["a\nWARNING", "\x1b[2J", "\x85"])
def test_a_name_with_control_characters_is_no_failed_login(stranger, caplog, name):
    log_in(stranger, {"username": name, "password": "wrong"}, status=400)
    assert not caplog.records


@pytest.mark.integration
def test_fail2ban_finds_each_failed_login_in_the_log_and_nothing_else(run, start, tmp_path):
    filter_file = ROOT / "deploy/fail2ban/filter.d/course-api.conf"
    if not shutil.which("fail2ban-regex"):
        pytest.skip("install fail2ban: apt-get install fail2ban")
    run("seed.py")
    api = start(TRUSTED_PROXY="127.0.0.1")
    tries = [(name, f"198.51.100.{number}") for number, name in enumerate(FORGED)] + [("faisal", "2001:db8::9")] * 6
    for name, address in tries:
        api.request("/login", "POST", {"username": name, "password": "wrong"}, X_Forwarded_For=address)
    api.log_in()
    api.request("/courses/%20WARNING%20failed%20login%20as%20x%20from%20192.0.2.7")
    assert api.stop() == 0
    lines = [f"{line}\n" for line in api.output]
    lines += [f"Nov 28 04:05:06 host python[42]: {line}" for line in lines]  # as journald and syslog have them
    (tmp_path / "log").write_text("".join(lines))
    done = subprocess.run(
        ["fail2ban-regex", "--out", "ip", tmp_path / "log", filter_file], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == [address for _, address in tries] * 2, done.stderr


# -- The address behind a proxy ----------------------------------------------------------------------------------------

PROXY = "192.0.2.80"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        *((form, "198.51.100.7") for form in ("198.51.100.7", "198.51.100.7:40001", '"198.51.100.7:40001"')),
        *((form, "198.51.100.7") for form in ("203.0.113.9, 198.51.100.7", "rubbish,\t198.51.100.7:1 ")),
        *((form, "2001:db8::1") for form in ("2001:db8::1", "[2001:db8::1]", '"[2001:DB8:0::1]:40001"')),
        *((form, PROXY) for form in ("", "203.0.113.9, ", "203.0.113.9, unknown", "cafe", "_hidden:1", "999.1.1.1")),
        *((form, "fe80::1") for form in ("fe80::1%eth0", "fe80::1%a grace GET /courses 200", "[fe80::1%a b]:40001")),
        *((form, PROXY) for form in ("198.51.100.7:port", "[2001:db8::1", "2001:db8::1]:40001", "[198.51.100.7]x")),
    ],
)
def test_the_trusted_proxy_names_the_client_in_any_form_and_nobody_else_does(monkeypatch, forwarded, address):
    for trusted, peer, expected in ((PROXY, PROXY, address), ("*", PROXY, address), (PROXY, "::1", "::1")):
        assert forward(monkeypatch, trusted, peer, forwarded) == expected


def forward(monkeypatch, trusted, peer, forwarded="198.51.100.7"):
    """Return the address that counts as the client's if a peer sends X-Forwarded-For."""
    monkeypatch.setattr(settings, "TRUSTED_PROXY", settings.proxies(trusted))
    course_api.is_trusted.cache_clear()
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded}
    bottle.request.bind(environ)
    course_api.trust_proxy()
    return environ["REMOTE_ADDR"]


@pytest.mark.parametrize(
    ("trusted", "peers", "others"),
    [
        ("127.0.0.1", ["127.0.0.1", "::ffff:127.0.0.1"], ["127.0.0.2", "::1", "::ffff:127.0.0.2", ""]),
        ("::ffff:10.0.0.1", ["10.0.0.1", "::ffff:10.0.0.1"], ["10.0.0.2"]),
        ("10.0.0.0/8, fd00::/8", ["10.200.0.9", "::ffff:10.0.0.9", "fd12::1"], ["11.0.0.1", "fe80::1"]),
        ("::ffff:10.0.0.0/104 192.0.2.80", ["10.200.0.9", "192.0.2.80"], ["11.0.0.1", "192.0.2.81"]),
        ("10.0.0.7/8", ["10.0.0.9"], ["11.0.0.1"]),
        ("fe80::/10", ["fe80::1%eth0"], ["fd12::1"]),
        ("*", ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "", "unix:"], []),
        ("", [], ["127.0.0.1", "::1", ""]),
    ],
)
def test_trusted_proxies_are_addresses_and_networks_in_either_form(monkeypatch, trusted, peers, others):
    assert [forward(monkeypatch, trusted, peer) for peer in peers] == ["198.51.100.7"] * len(peers)
    assert [forward(monkeypatch, trusted, peer) for peer in others] == others


def test_a_proxy_that_is_not_trusted_is_logged_once(stranger, caplog):
    course_api.is_trusted.cache_clear()
    for address in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2", "unix:"):
        for _ in range(3):
            log_in(stranger, LOGIN, address, headers={"X-Forwarded-For": "198.51.100.7"})
        log_in(stranger, LOGIN, "192.0.2.3")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"X-Forwarded-For from {address} is ignored; if that is your proxy, set TRUSTED_PROXY={name}"
        for address, name in (
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.2", "192.0.2.2"),
            ("unix:", "*"),
        )
    ]


def test_without_a_trusted_proxy_x_forwarded_for_is_ignored(stranger):
    fail(stranger, headers={"X-Forwarded-For": "198.51.100.7"})
    log_in(stranger, LOGIN, headers={"X-Forwarded-For": "198.51.100.8"}, status=429)


def test_the_port_of_a_client_behind_the_proxy_does_not_count(run, start):
    run("seed.py")
    api = start(TRUSTED_PROXY="127.0.0.1")
    addresses = [f"[2001:db8::{number}]:4000{number}" for number in range(6)]
    addresses += ["192.0.2.1", "192.0.2.1, rubbish"]
    statuses = [api.request("/login", "POST", WRONG, X_Forwarded_For=address)[0] for address in addresses]
    assert statuses == [400] * 5 + [429] + [400, 400]
    api.wait_for("INFO 2001:db8::5 - POST /login 429")


# -- Several threads and processes -------------------------------------------------------------------------------------


def test_guesses_at_the_same_time_are_counted_one_by_one(run, start):
    run("seed.py")
    api = start()
    statuses = ask_at_once(lambda _: api.request("/login", "POST", WRONG)[0], 36, clients=12)
    assert (statuses.count(400), statuses.count(429)) == (5, 31)


@pytest.mark.integration
def test_processes_that_share_a_redis_count_together(run, start):
    url = os.environ.get("REDIS_URL")
    if not url:
        pytest.skip("set REDIS_URL to a Redis database whose login limits the test may reset")
    storage = limits.storage.storage_from_string(url)
    storage.reset()
    run("seed.py")
    one, other = start(LIMIT_STORAGE=url), start(LIMIT_STORAGE=url)
    statuses = [api.request("/login", "POST", WRONG)[0] for api in (one, other) * 3]
    assert statuses == [400] * 5 + [429]
    assert one.request("/login", "POST", LOGIN)[0] == 429
    storage.reset()
