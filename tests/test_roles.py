"""Who may do what: users and keys that may only read or have ended, passwords, and reading without a token."""

import concurrent.futures
import itertools
import json
import re
import threading
import time

import jwt
import peewee
import pytest
from catalogue import CHANGE, CSE115, NEW, make_token
from description import Client, check_error
from processes import database_url
from servers import ask_at_once, locked

import course_api
import database
import models
import seed
import settings

EVERY_WRITE = pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/courses", NEW),
        ("POST", "/courses?update=true", [CSE115 | CHANGE]),
        ("PUT", "/courses/CSE115", CHANGE),
        ("PATCH", "/courses/CSE115", CHANGE),
        ("DELETE", "/courses/CSE115", {}),
    ],
)
READS = ["/courses", "/courses/", "/courses?q=intro&limit=1", "/courses/CSE115"]


def write(client, method, path, body, **options):
    body = course_api.msgspec.json.encode(body)
    return client.request(path, method=method, body=body, headers={"Content-Type": "application/json"}, **options)


def log_in(app, username, read_only=False):
    """Return a client with the token of a new user, whose password is "secret word"."""
    models.User.create_user(username, "secret word", read_only=read_only)
    client = Client(app)
    client.authorization = ("Bearer", make_token(username))
    return client


def use_key(client, **options):
    """Let a client of grace send a new key, "cron", instead of its token."""
    client.authorization = ("Bearer", models.ApiKey.create_key(get_user(), "cron", **options))


def get_user(username="grace"):
    return models.User.get(models.User.username == username)


@pytest.fixture
def reader(app, cheap_hashes):
    return log_in(app, "reader", read_only=True)


@pytest.fixture
def grace(app, cheap_hashes):
    """A client with the token of an editor."""
    return log_in(app, "grace")


# -- Users and keys that may not write, or no longer -------------------------------------------------------------------


def demote(client):
    models.User.update(read_only=True).where(models.User.username == "grace").execute()


def delete(client):
    get_user().delete_instance()


def delete_as_2_0_0(client):
    models.db.execute_sql("DELETE FROM users WHERE username = 'grace'")


def add_again(client):
    delete(client)
    models.User.create_user("grace", "secret word")


def add_again_as_2_0_0(client):
    delete_as_2_0_0(client)
    models.db.execute_sql("INSERT INTO users (username, password, read_only) VALUES ('grace', 'a hash', FALSE)")


def change_password(client):
    change = {"old_password": "secret word", "new_password": "another word"}
    client.put_json("/password", change, status=204)


def change_password_by_seed(client):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seed, "read_password", lambda name: "another word")
        seed.set_user("grace", None, False)


def expire_key(client):
    models.ApiKey.update(expires=int(time.time())).execute()


def demote_key(client):
    models.ApiKey.update(read_only=True).execute()


def delete_key(client):
    seed.set_key("grace", "cron", None, False, True)


GONE, RENEWED = "the user no longer exists", "the user has a new password; log in again"
NO_KEY = "there is no such key, or it has expired"
TOKEN_ENDS = [  # what happens, the status of a write by the token afterwards, and its error or reason
    (demote, 403, "user grace may only read"),
    (delete, 401, GONE),
    (delete_as_2_0_0, 401, GONE),
    (add_again, 401, RENEWED),
    (add_again_as_2_0_0, 401, RENEWED),
    (change_password, 401, RENEWED),
    (change_password_by_seed, 401, RENEWED),
]
KEY_ENDS = [  # the same for a key
    (demote, 403, "user grace may only read"),
    (delete, 401, NO_KEY),
    (delete_as_2_0_0, 401, NO_KEY),
    (add_again, 401, NO_KEY),
    (add_again_as_2_0_0, 401, NO_KEY),
    (expire_key, 401, NO_KEY),
    (delete_key, 401, NO_KEY),
    (demote_key, 403, "key cron may only read"),
]
ENDS = [(False, *row) for row in TOKEN_ENDS] + [(True, *row) for row in KEY_ENDS]
EVERY_END = pytest.mark.parametrize(
    ("with_key", "end", "status", "reason"),
    ENDS,
    ids=[f"{'key' * key or 'token'}-{end.__name__}" for key, end, *_ in ENDS],
)


def check_refused(response, reason):
    """Check a 401 or 403, and its challenge."""
    if response.status_int == 403:
        check_error(response, reason)
        challenge = 'Bearer error="insufficient_scope"'
    else:
        check_error(response, "Invalid token", reason=reason)
        challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    assert response.headers["WWW-Authenticate"] == challenge


def stored_users():
    """Return every user as stored; on PostgreSQL also the transactions that have written or locked each row."""
    columns = "xmin, xmax, *" if isinstance(database.db, peewee.PostgresqlDatabase) else "*"
    return database.db.execute_sql(f"SELECT {columns} FROM users ORDER BY id").fetchall()


@pytest.mark.parametrize("code", ["CSE115", "CSE999"])
@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_a_refused_write_neither_changes_nor_locks_a_user(reader, method, code):
    """An editor's write locks its user for the statement, so that a change of the password or the role waits for it."""
    before = stored_users()
    write(reader, method, f"/courses/{code}", CHANGE, status=403)
    write(reader, "POST", "/courses", NEW, status=403)
    assert stored_users() == before


@EVERY_WRITE
@EVERY_END
def test_nothing_is_written_once_the_user_or_the_key_may_not(grace, with_key, end, status, reason, method, path, body):
    before = models.Course.get_all_courses()
    if with_key:
        use_key(grace)
    end(grace)
    check_refused(write(grace, method, path, body, status=status), reason)
    assert models.Course.get_all_courses() == before


@EVERY_WRITE
@pytest.mark.parametrize("with_key", [False, True], ids=["token", "key"])
def test_an_editor_writes_and_a_role_holds_at_once(grace, with_key, method, path, body):
    if with_key:
        use_key(grace, seconds=60)
    demote(grace)
    write(grace, method, path, body, status=403)
    before = models.Course.get_all_courses()
    models.User.update(read_only=False).where(models.User.username == "grace").execute()
    write(grace, method, path, body, status=[200, 201, 204])
    assert models.Course.get_all_courses() != before


@EVERY_END
@pytest.mark.parametrize("query", ["", "?update=true"])
def test_an_upload_is_not_stored_if_its_user_may_no_longer_write_when_it_ends(
    grace, monkeypatch, with_key, end, status, reason, query
):
    before, store = models.Course.get_all_courses(), models.Course.store_courses
    other = Client(grace.app)
    other.authorization = grace.authorization
    if with_key:
        use_key(grace)

    def late(*args, **options):
        end(other)
        return store(*args, **options)

    monkeypatch.setattr(models.Course, "store_courses", late)
    late_reason = GONE if with_key and end in (delete, delete_as_2_0_0) else reason  # the key was good at the beginning
    response = write(grace, "POST", f"/courses{query}", [NEW, NEW | {"code": "CSE999"}], status=status)
    check_refused(response, late_reason)
    assert models.Course.get_all_courses() == before


@pytest.mark.parametrize(
    ("end", "reason"), [(delete, GONE), (demote_key, "key cron may only read"), (delete_key, NO_KEY)]
)
@EVERY_WRITE
def test_a_write_by_a_key_checks_the_key_when_it_happens(grace, monkeypatch, end, reason, method, path, body):
    use_key(grace)
    before, get_writer = models.Course.get_all_courses(), models.ApiKey.get_writer

    def late(key):
        by = get_writer(key)
        end(grace)
        return by

    monkeypatch.setattr(models.ApiKey, "get_writer", late)
    check_refused(write(grace, method, path, body, status=[401, 403]), reason)
    assert models.Course.get_all_courses() == before


@EVERY_WRITE
def test_a_token_of_2_0_0_which_has_no_stamp_writes_until_it_expires(grace, method, path, body):
    change_password(grace)
    claims = {"sub": "grace", "iat": int(time.time()), "exp": int(time.time()) + 200}
    grace.authorization = ("Bearer", jwt.encode(claims, course_api.signing_key(), "HS256"))
    write(grace, method, path, body, status=[200, 201, 204])


def test_a_user_whom_2_0_0_has_added_gets_a_stamp_at_the_first_login(grace):
    get_user().delete_instance()
    values = (models.hash_password("secret word"),)
    models.db.execute_sql(
        models.sql("INSERT INTO users (username, password, read_only) VALUES ('grace', %s, FALSE)"), values
    )
    assert get_user().stamp == ""
    for _ in range(2):
        token = grace.post_json("/login", {"username": "grace", "password": "secret word"}).text
        grace.authorization = ("Bearer", token)
        grace.patch_json("/courses/CSE115", CHANGE, status=204)
    assert course_api.verify_token(token, course_api.signing_key())[0].stamp == get_user().stamp != ""
    add_again_as_2_0_0(grace)
    check_refused(grace.patch_json("/courses/CSE115", CHANGE, status=401), RENEWED)


@pytest.mark.parametrize("end", [delete, add_again, change_password, change_password_by_seed])
def test_an_old_token_reads_until_it_expires(grace, end):
    end(grace)
    grace.get("/courses", status=200)


@pytest.mark.parametrize("end", [change_password, change_password_by_seed])
def test_a_key_outlives_the_password(grace, end):
    token = grace.authorization
    use_key(grace)
    key, grace.authorization = grace.authorization, token
    end(grace)
    grace.authorization = key
    grace.patch_json("/courses/CSE115", CHANGE, status=204)


@pytest.mark.sqlite
@pytest.mark.parametrize("path", READS)
def test_a_read_by_a_key_ends_with_the_key(grace, path):
    for end in (delete_key, expire_key, delete):
        use_key(grace)
        grace.get(path, status=200)
        end(grace)
        check_refused(grace.get(path, status=401), NO_KEY)
        models.ApiKey.delete().execute()


# -- Keys --------------------------------------------------------------------------------------------------------------


def test_a_key_goes_wherever_a_token_goes(stranger, grace):
    key = models.ApiKey.create_key(get_user(), "cron")
    stranger.get(f"/courses?token={key}", status=200)
    stranger.get("/courses", headers={"Authorization": f"bearer {key}"}, status=200)
    stranger.get(f"/courses?token={key}", headers={"Authorization": f"Bearer {key}"}, status=400)


def test_a_key_has_256_random_bits_of_which_only_a_hash_is_stored(grace):
    keys = {models.ApiKey.create_key(get_user(), str(number)) for number in range(20)}
    assert len(keys) == 20 and all(re.fullmatch(r"key_[\w-]{43}", key) for key in keys)
    stored = str([row.__data__ for row in models.ApiKey.select()])
    assert not any(key.removeprefix("key_") in stored for key in keys)


@pytest.mark.parametrize("key", ["key_", "key_" + "a" * 43, "key_é", "key_\udcff", "key_'\"%00", "key_" + "k" * 5000])
def test_an_unknown_key_is_refused_and_not_quoted(stranger, key):
    response = stranger.get("/courses", {"token": key.encode(errors="surrogateescape")}, status=401)
    check_refused(response, NO_KEY)


def test_a_link_does_not_hold_the_key_that_the_request_had_in_its_query(stranger, grace):
    key = models.ApiKey.create_key(get_user(), "cron")
    response = stranger.get(f"/courses?token={key}&limit=1", status=200)
    assert "key_" not in str(response.headers) + response.text
    assert "limit=1&after=" in response.headers["Link"]


# -- Passwords ---------------------------------------------------------------------------------------------------------


def test_users_change_their_own_password_readers_too(stranger, reader):
    old, new = {"username": "reader", "password": "secret word"}, {"username": "reader", "password": "another word"}
    reader.put_json("/password", {"old_password": "secret word", "new_password": "another word"}, status=204)
    stranger.post_json("/login", old, status=400)
    stranger.post_json("/login", new, status=200)
    again = {"old_password": "another word", "new_password": "third word"}
    check_refused(reader.put_json("/password", again, status=401), RENEWED)
    stranger.post_json("/login", new, status=200)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, "old_password and new_password must be provided"),
        ({"old_password": "secret word"}, "old_password and new_password must be provided"),
        ({"new_password": "another word"}, "old_password and new_password must be provided"),
        ({"new_password": "1234567", "old_password": "secret word"}, "new_password must be 8 characters or more"),
        ({"new_password": 12345678, "old_password": "secret word"}, "password must be a string"),
        ({"new_password": "another word", "old_password": "wrong"}, "old_password is not correct"),
    ],
)
def test_a_bad_change_of_password_is_refused(stranger, grace, change, error):
    check_error(grace.put_json("/password", change, status=400), error)
    stranger.post_json("/login", {"username": "grace", "password": "secret word"}, status=200)


def test_a_wrong_old_password_counts_as_a_failed_login(stranger, grace):
    wrong = {"old_password": "wrong", "new_password": "another word"}
    for _ in range(5):
        grace.put_json("/password", wrong, status=400)
    grace.put_json("/password", wrong | {"old_password": "secret word"}, status=429)
    stranger.post_json("/login", {"username": "grace", "password": "secret word"}, status=429)


def test_a_key_cannot_change_the_password(grace):
    use_key(grace)
    change = {"old_password": "secret word", "new_password": "another word"}
    check_refused(
        grace.put_json("/password", change, status=403), "a key cannot change the password; log in, and send the token"
    )
    assert models.User.match_user("grace", "secret word")


def test_of_two_changes_at_once_one_is_stored(grace, monkeypatch):
    check_password = course_api.check_password

    def late(*args):
        user = check_password(*args)
        change_password_by_seed(grace)
        return user

    monkeypatch.setattr(course_api, "check_password", late)
    change = {"old_password": "secret word", "new_password": "third word"}
    check_refused(grace.put_json("/password", change, status=401), RENEWED)
    assert models.User.match_user("grace", "another word")


# -- Races -------------------------------------------------------------------------------------------------------------


def test_nothing_is_stored_by_an_old_token_once_its_password_has_changed(serve):
    """Whatever was under way when the change was answered: courses by POST, uploads and PATCH, from 8 clients."""
    api, bearer = serve()
    change = {"old_password": "faisal", "new_password": "another word"}

    def read():
        return api.request("/courses", **bearer)[1]

    def write(number):
        course = NEW | {"code": f"C{number}"}
        requests = [
            ("/courses", "POST", course),
            ("/courses", "POST", [course, course | {"code": f"D{number}"}]),
            ("/courses/CSE115", "PATCH", {"name": f"Changed {number}"}),
        ]
        return api.request(*requests[number % 3], **bearer)[0]

    def work(client):
        """Write until the change, which client 8 makes, has been answered; return the statuses."""
        statuses, numbers = set(), itertools.count(client, 8)
        while client < 8 and not changed.is_set():
            statuses.add(write(next(numbers)))
        if client == 8:
            assert api.request("/password", "PUT", change, **bearer)[0] == 204
            stored.append(read())
            changed.set()
        return statuses

    changed, stored = threading.Event(), []
    assert {201, 204} <= set().union(*ask_at_once(work, 9, clients=9)) <= {201, 204, 401}
    assert [write(number) for number in (-1, -2, -3)] == [401] * 3
    assert stored == [read()]


def test_a_change_of_password_waits_for_a_write_under_way_by_the_old_token(serve, tmp_path):
    api, bearer = serve()
    change = {"old_password": "faisal", "new_password": "another word"}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        with locked(database_url(tmp_path)):
            write = pool.submit(api.request, "/courses/CSE115", "PATCH", {"name": "Late"}, **bearer)
            time.sleep(0.3)  # so that the statement waits for the lock
            changed = pool.submit(
                lambda: (api.request("/password", "PUT", change, **bearer)[0], read_name(api, bearer))
            )
            time.sleep(0.3)
        status, name = changed.result()
        assert (status, name) == (204, read_name(api, bearer))
        assert write.result()[0] in (204, 401)
    assert read_name(api, bearer) == name


def read_name(api, bearer):
    return json.loads(api.request("/courses/CSE115", **bearer)[1])["name"]


# -- PUBLIC_READ -------------------------------------------------------------------------------------------------------


@pytest.fixture
def public_read(monkeypatch):
    monkeypatch.setattr(settings, "PUBLIC_READ", True)


@pytest.mark.parametrize("path", READS)
def test_a_read_needs_no_role_and_with_public_read_no_token(stranger, reader, public_read, path):
    reader.get(path, status=200)
    stranger.get(path, status=200)
    stranger.head(path, status=200)


@EVERY_WRITE
def test_public_read_still_needs_a_token_to_write(stranger, public_read, method, path, body):
    response = write(stranger, method, path, body, status=401)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_public_read_refuses_a_bad_token(stranger, public_read):
    stranger.get("/courses?token=bad", status=401)
    stranger.get("/courses/CSE115", headers={"Authorization": "Bearer bad"}, status=401)


def test_the_setting_is_read_at_start(run, start):
    run("seed.py")
    api = start(PUBLIC_READ="true")
    assert api.request("/courses/CSE115")[0] == 200
    assert api.request("/courses/CSE115", "DELETE")[0] == 401
