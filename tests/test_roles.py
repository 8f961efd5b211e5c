"""Who may do what: users who may only read, users who are deleted, and reading without a token."""

import pytest
from catalogue import CHANGE, CSE115, NEW
from description import Client, check_error

import course_api
import models
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


def log_in(app, username, read_only):
    """Return a client with the token of a new user."""
    models.User.create_user(username, "secret", read_only=read_only)
    client = Client(app)
    client.authorization = ("Bearer", course_api.make_token(username))
    return client


@pytest.fixture
def reader(app):
    return log_in(app, "reader", read_only=True)


@pytest.fixture
def leaver(app):
    """A client with the token of a user who is deleted."""
    leaver = log_in(app, "leaver", read_only=False)
    models.User.delete().where(models.User.username == "leaver").execute()
    return leaver


@EVERY_WRITE
def test_a_read_only_user_cannot_write_and_an_editor_can(client, reader, method, path, body):
    before = client.get("/courses").json
    response = write(reader, method, path, body, status=403)
    check_error(response, "user reader may only read")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'
    assert client.get("/courses").json == before
    models.User.update(read_only=False).where(models.User.username == "reader").execute()  # holds at once
    write(reader, method, path, body, status=[200, 201, 204])
    assert client.get("/courses").json != before


@EVERY_WRITE
def test_a_deleted_user_cannot_write(client, leaver, method, path, body):
    before = client.get("/courses").json
    response = write(leaver, method, path, body, status=401)
    reason = "the user no longer exists"
    check_error(response, "Invalid token", reason=reason)
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    assert response.headers["WWW-Authenticate"] == challenge
    assert client.get("/courses").json == before


@pytest.mark.parametrize("query", ["", "?update=true"])
@pytest.mark.parametrize(("name", "status"), [("reader", 403), ("leaver", 401)])
def test_an_upload_is_not_stored_if_its_user_may_no_longer_write_when_it_ends(app, monkeypatch, name, status, query):
    client, before = log_in(app, name, read_only=False), models.Course.get_all_courses()
    changes = {
        "reader": models.User.update(read_only=True).where(models.User.username == "reader"),
        "leaver": models.User.delete().where(models.User.username == "leaver"),
    }
    store = models.Course.store_courses

    def late(*args, **options):
        changes[name].execute()
        return store(*args, **options)

    monkeypatch.setattr(models.Course, "store_courses", late)
    write(client, "POST", f"/courses{query}", [NEW, NEW | {"code": "CSE999"}], status=status)
    assert models.Course.get_all_courses() == before


def test_a_deleted_user_can_read_until_the_token_expires_and_gets_no_other(leaver):
    leaver.get("/courses", status=200)
    leaver.post_json("/login", {"username": "leaver", "password": "secret"}, status=400)


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
