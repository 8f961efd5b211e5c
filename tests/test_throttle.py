"""Brute force: who is wrong too often waits, and nobody else does."""

import concurrent.futures
import time

import argon2
import pytest
import redis

import course_api
import models

RIGHT = {"username": "faisal", "password": "faisal"}
WRONG = RIGHT | {"password": "wrong"}


def log_in(client, login=RIGHT, address="192.0.2.1", **options):
    return client.post_json("/login", login, extra_environ={"REMOTE_ADDR": address}, **options)


def test_the_sixth_wrong_password_for_a_name_is_not_looked_at(stranger):
    for _ in range(5):
        log_in(stranger, WRONG, status=400)
    answer = log_in(stranger, WRONG, status=429)
    assert 290 <= int(answer.headers["Retry-After"]) <= 300
    assert "try again in" in answer.json["error"]


def test_the_right_password_is_refused_too_while_throttled(stranger):
    for _ in range(5):
        log_in(stranger, WRONG, status=400)
    log_in(stranger, RIGHT, status=429)


def test_another_name_and_another_address_are_not_throttled(stranger):
    for _ in range(5):
        log_in(stranger, WRONG, status=400)
    log_in(stranger, WRONG | {"username": "grace"}, status=400)
    log_in(stranger, RIGHT, "192.0.2.2", status=200)


def test_fifty_wrong_passwords_from_an_address_throttle_it_for_every_name(stranger):
    for number in range(50):
        log_in(stranger, WRONG | {"username": f"user{number}"}, status=400)
    log_in(stranger, RIGHT, status=429)
    log_in(stranger, RIGHT, "192.0.2.2", status=200)


def test_right_passwords_are_not_counted(stranger):
    for _ in range(12):
        log_in(stranger, RIGHT, status=200)


def test_what_is_no_login_is_not_counted(stranger):
    for _ in range(60):
        stranger.post_json("/login", {"username": "faisal"}, status=400)
    log_in(stranger, RIGHT, "127.0.0.1", status=200)


def test_the_window_moves_on(stranger, monkeypatch):
    start, now = time.time(), [0]
    monkeypatch.setattr(time, "time", lambda: start + now[0])
    for second in range(0, 50, 10):
        now[0] = second
        log_in(stranger, WRONG, status=400)
    now[0] = 299
    assert log_in(stranger, WRONG, status=429).headers["Retry-After"] == "1"
    now[0] = 301
    log_in(stranger, WRONG, status=400)
    assert log_in(stranger, WRONG, status=429).headers["Retry-After"] == "9"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("unix:", "unix:", True),
    ],
)
def test_a_network_of_ipv6_is_one_address(stranger, first, second, same):
    for _ in range(5):
        log_in(stranger, WRONG, first, status=400)
    log_in(stranger, RIGHT, second, status=429 if same else 200)


def test_guesses_at_the_same_time_are_counted_one_by_one(app, run, start):
    run("seed.py")
    api = start()

    def guess(number):
        return api.request("/login", "POST", WRONG | {"password": f"guess {number}"})[0]

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(guess, range(36)))
    assert (statuses.count(400), statuses.count(429)) == (5, 31)


def test_too_many_logins_at_once_are_told_to_come_back(stranger, monkeypatch):
    monkeypatch.setattr(course_api, "logins", course_api.threading.BoundedSemaphore(1))
    with course_api.logins:
        assert log_in(stranger, status=503).headers["Retry-After"] == "1"
    log_in(stranger, status=200)


# -- The address behind a proxy ----------------------------------------------------------------------------------------


def guesses(api, *addresses):
    """Return the status of a wrong login for each address that X-Forwarded-For gives."""
    return [api.request("/login", "POST", WRONG, X_Forwarded_For=address)[0] for address in addresses]


def test_x_forwarded_for_of_a_stranger_is_not_believed(run, start):
    run("seed.py")
    assert guesses(start(), *(f"192.0.2.{number}" for number in range(7))) == [400] * 5 + [429] * 2


def test_x_forwarded_for_of_the_trusted_proxy_is_the_address(run, start):
    run("seed.py")
    api = start(TRUSTED_PROXY="127.0.0.1")
    assert guesses(api, *["192.0.2.1"] * 6, "192.0.2.2") == [400] * 5 + [429, 400]
    # What the client itself wrote stands before what the proxy added.
    assert guesses(api, "192.0.2.9, 192.0.2.1", "192.0.2.1, 192.0.2.3") == [429, 400]
    api.wait_for("INFO 192.0.2.3 POST /login 400")


def test_another_proxy_than_the_trusted_one_is_not_believed(run, start):
    run("seed.py")
    api = start(TRUSTED_PROXY="192.0.2.80")
    assert guesses(api, *(f"192.0.2.{number}" for number in range(6))) == [400] * 5 + [429]


# -- Several processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def redis_url():
    url = "redis://127.0.0.1:6379/9"
    client = redis.Redis.from_url(url)
    try:
        client.flushdb()
    except redis.ConnectionError:
        pytest.skip("needs a Redis at 127.0.0.1:6379")
    yield url
    client.flushdb()
    client.close()


def test_processes_that_share_a_redis_count_together(run, start, tmp_path, redis_url):
    run("seed.py")
    one, other = start(LIMIT_STORAGE=redis_url), start(LIMIT_STORAGE=redis_url)
    statuses = [api.request("/login", "POST", WRONG)[0] for api in (one, other) * 3]
    assert statuses == [400] * 5 + [429]
    assert one.request("/login", "POST", RIGHT)[0] == 429


def test_without_its_redis_there_is_no_login_and_all_else_goes_on(run, start):
    run("seed.py")
    api = start(LIMIT_STORAGE="redis://127.0.0.1:1")
    assert api.request("/login", "POST", RIGHT)[0] == 503
    assert api.request("/health")[0] == 200


# -- Telling users apart -----------------------------------------------------------------------------------------------


def test_no_user_can_be_told_from_one_that_there_is(stranger, monkeypatch):
    """Neither by the answer nor by the time it takes: a password of nobody's is hashed as often, at the same cost."""
    costs = {"faisal": [], "nobody": []}

    class Hasher(argon2.PasswordHasher):
        def verify(self, hashed, password):
            costs[username].append(argon2.extract_parameters(hashed))
            return super().verify(hashed, password)

    monkeypatch.setattr(models, "HASHER", Hasher())
    for username in costs:
        answer = log_in(stranger, WRONG | {"username": username}, status=400)
        assert answer.json == {"error": "username or password is not correct"}
    assert costs["faisal"] == costs["nobody"] != []
