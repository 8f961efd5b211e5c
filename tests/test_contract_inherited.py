"""Part A of the contract: what clients written against the tutorial rely on, to the letter."""

import time

import jwt
import pytest
from description import check_error

import course_api

CSE115 = {"code": "CSE115", "name": "Introduction to programming language", "instructor": "John stuart"}
CSE465 = {"code": "CSE465", "name": "Introduction to neural network", "instructor": "Andrew Ng"}
NEW = {"code": "CSE225", "name": "Data structures", "instructor": "Ada Lovelace"}
CHANGE = {"name": "Basics", "instructor": "Grace Hopper"}
BOTH = "Course name and instructor's name must be provided"
EITHER = "Course name or instructor's name must be provided"
UNKNOWN = "Course code is not found in the courses"


def without_id(course):
    assert isinstance(course.pop("id"), int)
    return course


def get(client, code):
    return without_id(client.get(f"/courses/{code}").json)


def get_list(client, path="/courses"):
    return [without_id(course) for course in client.get(path).json["courses"]]


def test_login_returns_the_bare_token(stranger):
    before = int(time.time())
    response = stranger.post_json("/login", {"username": "faisal", "password": "faisal"}, status=200)
    claims = jwt.decode(response.body, course_api.signing_key(), algorithms=["HS256"])
    assert claims["sub"] == "faisal"
    assert before + 200 <= claims["exp"] <= time.time() + 200


@pytest.mark.parametrize(("username", "password"), [("faisal", "wrong"), ("nobody", "faisal"), ("Faisal", "faisal")])
def test_login_refuses_a_wrong_name_or_password(stranger, username, password):
    response = stranger.post_json("/login", {"username": username, "password": password}, status=400)
    check_error(response, "username or password is not correct")


def test_the_list_has_every_course_in_the_order_they_were_added(client):
    client.post_json("/courses", NEW | {"code": "AAA"})
    assert list(client.get("/courses", status=200).json) == ["courses"]
    assert get_list(client) == [CSE115, CSE465, NEW | {"code": "AAA"}]


def test_get_returns_one_course(client):
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("CSE225", "/courses/CSE225"),
        ("AAS 100", "/courses/AAS%20100"),
        ("MATH&151", "/courses/MATH&151"),
        ("C#", "/courses/C%23"),
        ("50%?", "/courses/50%25%3F"),
        ("物理 1", "/courses/%E7%89%A9%E7%90%86%201"),
    ],
)
def test_post_adds_a_course_and_its_location_leads_to_it(client, code, path):
    response = client.post_json("/courses", NEW | {"code": code}, status=201)
    assert (response.body, response.headers["Location"]) == (b"", path)
    assert without_id(client.get(path).json) == NEW | {"code": code}


@pytest.mark.parametrize("code", ["", "  "])
def test_post_with_an_empty_code_asks_for_one(client, code):
    check_error(client.post_json("/courses", NEW | {"code": code}, status=400), "course code must be provided")


def test_put_changes_both_fields(client):
    response = client.put_json("/courses/CSE115", CHANGE, status=204)
    assert (response.body, response.headers["Location"]) == (b"", "/courses/CSE115")
    assert get(client, "CSE115") == {"code": "CSE115"} | CHANGE


@pytest.mark.parametrize("body", [{}, {"name": "Basics"}, {"instructor": "Grace Hopper"}])
def test_put_asks_for_both_fields(client, body):
    check_error(client.put_json("/courses/CSE115", body, status=400), BOTH)
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("body", [{"name": "Basics"}, {"instructor": "Grace Hopper"}])
def test_patch_changes_one_field(client, body):
    response = client.patch_json("/courses/CSE115", body, status=204)
    assert (response.body, response.headers["Location"]) == (b"", "/courses/CSE115")
    assert get(client, "CSE115") == CSE115 | body


@pytest.mark.parametrize("body", [{}, {"code": "CSE999"}])
def test_patch_asks_for_either_field(client, body):
    check_error(client.patch_json("/courses/CSE115", body, status=400), EITHER)


def test_delete_removes_a_course_and_its_location_leads_to_the_list(client):
    response = client.delete("/courses/CSE115", status=204)
    assert (response.body, response.headers["Location"]) == (b"", "/courses/")
    assert get_list(client, response.headers["Location"]) == [CSE465]


def test_delete_of_an_unknown_code_is_a_bad_request(client):
    check_error(client.delete("/courses/CSE999", status=400), UNKNOWN)


def test_the_response_to_a_get_can_be_edited_and_sent_back_with_put(client):
    course = client.get("/courses/CSE115").json
    client.put_json("/courses/CSE115", course | {"name": "Basics", "id": 99, "code": 5, "other": [None]}, status=204)
    assert client.get("/courses/CSE115").json == course | {"name": "Basics"}


def test_a_client_of_the_tutorial_works_unchanged(stranger):
    token = stranger.post_json("/login", {"username": "faisal", "password": "faisal"}).text
    path = f"/courses/CSE225?token={token}"
    stranger.post_json(f"/courses?token={token}", NEW, status=201)
    assert without_id(stranger.get(path).json) == NEW
    stranger.put_json(path, {"name": "Trees", "instructor": "Ada"}, status=204)
    stranger.patch_json(path, {"name": "Graphs"}, status=204)
    changed = {"code": "CSE225", "name": "Graphs", "instructor": "Ada"}
    assert get_list(stranger, f"/courses?token={token}") == [CSE115, CSE465, changed]
    stranger.delete(path, status=204)
    check_error(stranger.delete(path, status=400), UNKNOWN)
