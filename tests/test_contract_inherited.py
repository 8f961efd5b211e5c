"""Part A of the contract: what the tutorial's clients rely on, to the letter."""

import time

import jwt
import pytest

import course_api

CSE115 = {"code": "CSE115", "name": "Introduction to programming language", "instructor": "John stuart"}
CSE465 = {"code": "CSE465", "name": "Introduction to neural network", "instructor": "Andrew Ng"}
NEW = {"code": "CSE225", "name": "Data structures", "instructor": "Ada Lovelace"}
BOTH = "Course name and instructor's name must be provided"
EITHER = "Course name or instructor's name must be provided"


def without_id(course):
    assert isinstance(course.pop("id"), int)
    return course


def get(client, code):
    return without_id(client.get(f"/courses/{code}").json)


def test_login_answers_the_bare_token(stranger):
    before = int(time.time())
    answer = stranger.post_json("/login", {"username": "faisal", "password": "faisal"}, status=200)
    claims = jwt.decode(answer.body, course_api.signing_key(), algorithms=["HS256"])
    assert jwt.get_unverified_header(answer.text)["alg"] == "HS256"
    assert claims["sub"] == "faisal"
    assert before + 200 <= claims["exp"] <= time.time() + 200


@pytest.mark.parametrize(("username", "password"), [("faisal", "wrong"), ("nobody", "faisal"), ("Faisal", "faisal")])
def test_login_refuses_a_wrong_name_or_password(stranger, username, password):
    answer = stranger.post_json("/login", {"username": username, "password": password}, status=400)
    assert answer.json == {"error": "username or password is not correct"}


def test_the_list_has_every_course_in_the_order_they_were_added(client):
    client.post_json("/courses", NEW | {"code": "AAA"})
    courses = client.get("/courses", status=200).json
    assert list(courses) == ["courses"]
    assert [without_id(course) for course in courses["courses"]] == [CSE115, CSE465, NEW | {"code": "AAA"}]


def test_an_empty_list_is_a_list(client):
    client.delete("/courses/CSE115")
    client.delete("/courses/CSE465")
    assert client.get("/courses").json == {"courses": []}


def test_get_answers_one_course(client):
    assert without_id(client.get("/courses/CSE115", status=200).json) == CSE115


def test_post_adds_a_course(client):
    answer = client.post_json("/courses", NEW, status=201)
    assert (answer.body, answer.headers["Location"]) == (b"", "/courses/CSE225")
    assert get(client, "CSE225") == NEW


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("AAS 100", "/courses/AAS%20100"),
        ("6.006", "/courses/6.006"),
        ("MATH&151", "/courses/MATH&151"),
        ("C#", "/courses/C%23"),
        ("50%?", "/courses/50%25%3F"),
        ("物理 1", "/courses/%E7%89%A9%E7%90%86%201"),
    ],
)
def test_the_location_of_a_new_course_leads_to_it(client, code, path):
    answer = client.post_json("/courses", NEW | {"code": code}, status=201)
    assert answer.headers["Location"] == path
    assert without_id(client.get(path).json) == NEW | {"code": code}


def test_post_with_an_empty_code_asks_for_one(client):
    answer = client.post_json("/courses", NEW | {"code": ""}, status=400)
    assert answer.json == {"error": "course code must be provided"}


def test_put_changes_both_fields(client):
    answer = client.put_json("/courses/CSE115", {"name": "Basics", "instructor": "Grace Hopper"}, status=204)
    assert (answer.body, answer.headers["Location"]) == (b"", "/courses/CSE115")
    assert get(client, "CSE115") == {"code": "CSE115", "name": "Basics", "instructor": "Grace Hopper"}


@pytest.mark.parametrize("body", [{}, {"name": "Basics"}, {"instructor": "Grace Hopper"}])
def test_put_asks_for_both_fields(client, body):
    assert client.put_json("/courses/CSE115", body, status=400).json == {"error": BOTH}
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("body", [{"name": "Basics"}, {"instructor": "Grace Hopper"}])
def test_patch_changes_one_field(client, body):
    answer = client.patch_json("/courses/CSE115", body, status=204)
    assert (answer.body, answer.headers["Location"]) == (b"", "/courses/CSE115")
    assert get(client, "CSE115") == CSE115 | body


@pytest.mark.parametrize("body", [{}, {"code": "CSE999"}])
def test_patch_asks_for_either_field(client, body):
    assert client.patch_json("/courses/CSE115", body, status=400).json == {"error": EITHER}


def test_delete_takes_a_course_away(client):
    answer = client.delete("/courses/CSE115", status=204)
    assert (answer.body, answer.headers["Location"]) == (b"", "/courses/")
    client.get("/courses/CSE115", status=404)
    assert get(client, "CSE465") == CSE465


def test_the_location_of_a_delete_leads_to_the_list(client):
    path = client.delete("/courses/CSE115").headers["Location"]
    assert [without_id(course) for course in client.get(path).json["courses"]] == [CSE465]


def test_delete_of_an_unknown_code_is_a_bad_request(client):
    answer = client.delete("/courses/CSE999", status=400)
    assert answer.json == {"error": "Course code is not found in the courses"}


def test_the_answer_of_a_get_can_be_edited_and_sent_back_with_put(client):
    course = client.get("/courses/CSE115").json
    client.put_json("/courses/CSE115", course | {"name": "Basics", "id": 99, "code": 5, "other": [None]}, status=204)
    assert client.get("/courses/CSE115").json == course | {"name": "Basics"}


def test_a_client_of_the_tutorial_works_unchanged(stranger):
    token = stranger.post_json("/login", {"username": "faisal", "password": "faisal"}).text
    path = f"/courses/CSE225?token={token}"
    assert stranger.post_json(f"/courses?token={token}", NEW).status_int == 201
    assert without_id(stranger.get(path).json) == NEW
    assert stranger.put_json(path, {"name": "Trees", "instructor": "Ada"}).status_int == 204
    assert stranger.patch_json(path, {"name": "Graphs"}).status_int == 204
    courses = [without_id(course) for course in stranger.get(f"/courses?token={token}").json["courses"]]
    assert courses == [CSE115, CSE465, {"code": "CSE225", "name": "Graphs", "instructor": "Ada"}]
    assert stranger.delete(path).status_int == 204
    assert stranger.delete(path, status=400).json == {"error": "Course code is not found in the courses"}
