"""Who may do what: users who may only read, users who are deleted, and reading without a token."""

import pytest
from conftest import Client
from description import check_error
from test_contract_inherited import CHANGE, CSE115, NEW

import course_api
import models

WRITES = [
    ("POST", "/courses", NEW),
    ("POST", "/courses?update=true", [CSE115 | CHANGE]),
    ("PUT", "/courses/CSE115", CHANGE),
    ("PATCH", "/courses/CSE115", CHANGE),
    ("DELETE", "/courses/CSE115", {}),
]
READS = ["/courses", "/courses/", "/courses?q=intro&limit=1", "/courses/CSE115"]
EVERY_WRITE = pytest.mark.parametrize(("method", "path", "body"), WRITES)


def write(client, method, path, body, **options):
    content_type = {} if method == "DELETE" else {"content_type": "application/json"}
    return client.request(path, method=method, body=course_api.msgspec.json.encode(body), **content_type, **options)


def log_in(app, username, read_only):
    """Return a client with the token of a new user."""
    models.User.create_user(username, "secret", read_only=read_only)
    client = Client(app)
    client.authorization = ("Bearer", course_api.make_token(username))
    return client


def set_read_only(username, read_only):
    models.User.update(read_only=read_only).where(models.User.username == username).execute()


def delete_user(username):
    models.User.delete().where(models.User.username == username).execute()


@EVERY_WRITE
def test_a_read_only_user_cannot_write_and_an_editor_can(app, client, method, path, body):
    before = client.get("/courses").json
    reader = log_in(app, "reader", read_only=True)
    response = write(reader, method, path, body, status=403)
    check_error(response, "user reader may only read")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'
    assert client.get("/courses").json == before
    set_read_only("reader", False)  # which holds at once, for the same token
    write(reader, method, path, body, status=[200, 201, 204])
    assert client.get("/courses").json != before


@EVERY_WRITE
def test_a_deleted_user_cannot_write(app, client, method, path, body):
    leaver = log_in(app, "leaver", read_only=False)
    delete_user("leaver")
    before = client.get("/courses").json
    response = write(leaver, method, path, body, status=401)
    reason = "the user does not exist any more"
    check_error(response, "Invalid token", reason=reason)
    challenge = f'Bearer error="invalid_token", error_description="{reason}"'
    assert response.headers["WWW-Authenticate"] == challenge
    assert client.get("/courses").json == before


def test_a_read_only_user_can_read(app):
    reader = log_in(app, "reader", read_only=True)
    for path in READS:
        reader.get(path, status=200)


def test_a_deleted_user_can_read_until_the_token_expires_and_gets_no_other(app):
    leaver = log_in(app, "leaver", read_only=False)
    delete_user("leaver")
    leaver.get("/courses", status=200)
    leaver.post_json("/login", {"username": "leaver", "password": "secret"}, status=400)


def test_an_editor_who_becomes_read_only_cannot_write_from_then_on(app):
    user = log_in(app, "grace", read_only=False)
    user.patch_json("/courses/CSE115", CHANGE, status=204)
    set_read_only("grace", True)
    user.patch_json("/courses/CSE115", CHANGE, status=403)


def test_user_names_are_case_sensitive(app):
    reader = log_in(app, "Faisal", read_only=True)
    reader.delete("/courses/CSE115", status=403)


def test_the_role_is_checked_before_the_request_is_read(app):
    reader = log_in(app, "reader", read_only=True)
    reader.post("/courses?page=2", b"no JSON", content_type="text/plain", status=403)
    reader.delete("/courses/CSE999", headers={"If-Match": '"other"'}, status=403)


# -- PUBLIC_READ -------------------------------------------------------------------------------------------------------


@pytest.fixture
def public_read(monkeypatch):
    monkeypatch.setattr(course_api, "PUBLIC_READ", True)


def test_public_read_needs_no_token(stranger, public_read):
    for path in READS:
        stranger.get(path, status=200)
        stranger.head(path, status=200)


@EVERY_WRITE
def test_public_read_still_needs_a_token_to_write(stranger, public_read, method, path, body):
    response = write(stranger, method, path, body, status=401)
    reason = "send a token as ?token= or in the Authorization header"
    check_error(response, "Invalid token", reason=reason)
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_public_read_refuses_a_bad_token(stranger, public_read):
    stranger.get("/courses?token=bad", status=401)
    stranger.get("/courses/CSE115", headers={"Authorization": "Bearer bad"}, status=401)
    good = course_api.make_token("faisal")
    stranger.get(f"/courses?token={good}", headers={"Authorization": f"Bearer {good}"}, status=400)


def test_the_setting_is_read_at_start(run, start):
    run("seed.py")
    api = start(PUBLIC_READ="true")
    assert api.request("/courses/CSE115")[0] == 200
    assert api.request("/courses/CSE115", "DELETE")[0] == 401
