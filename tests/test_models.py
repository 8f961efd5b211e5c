"""The models, as people call them from a Python prompt."""

import argon2
import peewee
import pytest

import models
from models import Course, User


@pytest.fixture
def user():
    User.create_user("grace", "hopper")
    yield User.get(User.username == "grace")
    User.delete().where(User.username == "grace").execute()


def test_the_tutorials_course_methods_work_under_their_names(app):
    Course.add_course("CSE225", "Ada", "Data structures")
    course = Course.get_course("CSE225")
    assert course == {"id": course["id"], "code": "CSE225", "name": "Data structures", "instructor": "Ada"}
    assert [course["code"] for course in Course.get_all_courses()] == ["CSE115", "CSE465", "CSE225"]
    assert Course.update_course("CSE225", instructor="Grace") is True
    assert Course.update_course("CSE225", name="Trees") is True
    assert Course.get_course("CSE225") == course | {"name": "Trees", "instructor": "Grace"}
    assert Course.delete_course("CSE225") is True
    assert Course.delete_course("CSE225") is False
    assert Course.update_course("CSE225", name="Trees") is False
    assert Course.get_course("CSE225") is None


def test_the_tutorials_user_methods_work_under_their_names(user):
    assert User.match_user("grace", "hopper") is True
    assert User.match_user("grace", "faisal") is False
    assert User.match_user("nobody", "hopper") is False
    assert "grace" in [str(user) for user in User.get_all_users()]


def test_a_bad_field_is_refused_from_python_too(app):
    with pytest.raises(ValueError, match="code must be 1 to 20 characters"):
        Course.add_course("a/b", "Ada", "Data structures")
    with pytest.raises(ValueError, match="name must be 1 to 120 characters"):
        Course.update_course("CSE115", name="")
    with pytest.raises(TypeError, match="instructor must be a string"):
        Course.add_course("CSE225", 5, "Data structures")
    assert len(Course.get_all_courses()) == 2


def test_a_taken_code_or_name_is_an_integrity_error(app, user):
    with pytest.raises(peewee.IntegrityError):
        Course.add_course("CSE115", "Ada", "Data structures")
    with pytest.raises(peewee.IntegrityError):
        User.create_user("grace", "another")


def test_json_from_the_database_is_exact(app):
    odd = "\" \\ / ' <&> \u2028 é 物 😀 {[,]}"
    Course.add_course("odd", odd, odd)
    course = Course.get_course("odd")
    assert (course["name"], course["instructor"]) == (odd, odd)


def test_the_list_is_in_the_order_of_the_ids(app):
    for number in (9000, 30, 7000, 500):
        Course.insert(id=number, code=f"C{number}", name="Basics", instructor="Ada").execute()
    Course.delete_course("CSE115")
    Course.add_course("CSE225", "Ada", "Data structures")
    ids = [course["id"] for course in Course.get_all_courses()]
    assert len(ids) == 6
    assert ids == sorted(ids)


def test_passwords_are_argon2id_with_owasps_parameters_and_a_salt_each(user):
    User.create_user("alan", "hopper")
    other = User.get(User.username == "alan")
    assert user.password.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert user.password != other.password
    other.delete_instance()


def test_a_login_rehashes_when_the_parameters_have_changed(user):
    old = argon2.PasswordHasher(memory_cost=8, time_cost=1, parallelism=1).hash("hopper")
    User.update(password=old).where(User.username == "grace").execute()
    assert not User.match_user("grace", "wrong")
    assert User.get_by_id(user.id).password == old
    assert User.match_user("grace", "hopper")
    assert User.get_by_id(user.id).password.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert User.match_user("grace", "hopper")


def test_an_unknown_user_costs_a_hash_too(monkeypatch):
    checked = []

    class Hasher:
        def verify(self, hashed, password):
            checked.append((hashed, password))
            raise argon2.exceptions.VerifyMismatchError

    monkeypatch.setattr(models, "HASHER", Hasher())
    assert User.match_user("nobody", "secret") is False
    assert checked == [(models.NOBODYS_HASH, "secret")]


@pytest.mark.sqlite
def test_sqlite_is_set_to_lose_nothing():
    assert models.database.pragma("journal_mode") == "wal"
    assert models.database.pragma("synchronous") == 2  # FULL
    assert models.database.pragma("foreign_keys") == 1
    assert models.database.pragma("busy_timeout") == 5000


def test_the_signing_key_is_made_once():
    key = models.SigningKey.get_key()
    assert len(bytes.fromhex(key)) == 32
    assert models.SigningKey.get_key() == key


@pytest.fixture
def statements(monkeypatch):
    """The SQL that reaches the database from now on."""
    seen = []
    connection = models.database.connection()
    connection.set_trace_callback(seen.append)
    yield seen
    connection.set_trace_callback(None)


@pytest.mark.sqlite
def test_each_request_is_one_statement(client, statements):
    """No read before a write: a constraint or a count of rows answers what would have been asked."""
    change = {"name": "Basics", "instructor": "Grace Hopper"}
    requests = [
        ("SELECT", lambda: client.get("/courses")),
        ("SELECT", lambda: client.get("/courses/CSE115")),
        ("INSERT", lambda: client.post_json("/courses", change | {"code": "CSE225"})),
        ("INSERT", lambda: client.post_json("/courses", change | {"code": "CSE225"}, status=409)),
        ("UPDATE", lambda: client.put_json("/courses/CSE115", change)),
        ("UPDATE", lambda: client.patch_json("/courses/CSE999", change, status=404)),
        ("DELETE", lambda: client.delete("/courses/CSE115")),
        ("DELETE", lambda: client.delete("/courses/CSE115", status=400)),
    ]
    for kind, request in requests:
        statements.clear()
        request()
        assert [statement.split()[0] for statement in statements] == [kind]


@pytest.mark.sqlite
def test_a_request_that_is_turned_away_asks_the_database_nothing(stranger, statements):
    stranger.get("/courses", status=401)
    stranger.post_json("/courses?token=bad", {}, status=401)
    assert statements == []
