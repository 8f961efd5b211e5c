"""Part A of the contract, and part B where it concerns one course: status, body and Location, to the letter."""

import time

import jwt
import pytest
from catalogue import (
    BODY,
    BOTH,
    CHANGE,
    CODE_MISSING,
    CSE115,
    CSE465,
    EITHER,
    LOGIN,
    NAME_RULE,
    NEW,
    TAKEN,
    UNKNOWN,
    get,
    get_list,
    without_id,
)
from description import check_error

import course_api


def test_login_returns_the_bare_token(stranger):
    before = int(time.time())
    response = stranger.post_json("/login", LOGIN, status=200)
    claims = jwt.decode(response.body, course_api.signing_key(), algorithms=["HS256"])
    assert claims["sub"] == "faisal"
    assert before + 200 <= claims["exp"] <= time.time() + 200


@pytest.mark.parametrize(("username", "password"), [("faisal", "wrong"), ("nobody", "faisal"), ("Faisal", "faisal")])
def test_login_refuses_a_wrong_name_or_password(stranger, username, password):
    response = stranger.post_json("/login", {"username": username, "password": password}, status=400)
    check_error(response, "username or password is not correct")


def test_the_list_has_every_course_in_the_order_they_were_added(client):
    client.post_json("/courses", BODY | {"code": "AAA"})
    assert list(client.get("/courses", status=200).json) == ["courses"]
    assert get_list(client) == [CSE115, CSE465, NEW | {"code": "AAA"}]


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("cse115", "/courses/cse115"),  # codes are case-sensitive
        ("AAS 100", "/courses/AAS%20100"),
        ("MATH&151", "/courses/MATH&151"),
        ("C#", "/courses/C%23"),
        ("50%?", "/courses/50%25%3F"),
        ("物理 1", "/courses/%E7%89%A9%E7%90%86%201"),
    ],
)
def test_post_adds_a_course_and_its_location_leads_to_it(client, code, path):
    response = client.post_json("/courses", BODY | {"code": code}, status=201)
    assert (response.body, response.headers["Location"]) == (b"", path)
    assert without_id(client.get(path).json) == NEW | {"code": code}
    assert get(client, "CSE115") == CSE115


@pytest.mark.parametrize("others", [{"id": "x", "other": [None]}, {"courses": None}, {"courses": {}}])
def test_other_members_of_a_new_course_are_ignored(client, others):
    client.post_json("/courses", BODY | others, status=201)
    assert get(client, "CSE225") == NEW


def test_post_of_a_code_that_exists_is_a_conflict_that_names_it(client):
    response = client.post_json("/courses", BODY | {"code": "CSE115"}, status=409)
    check_error(response, TAKEN)
    assert get_list(client) == [CSE115, CSE465]


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("put_json", CHANGE),
        ("patch_json", CHANGE),
        ("patch_json", {"name": "Basics"}),
        ("patch_json", {"instructor": "Grace Hopper"}),
        ("patch_json", {"instructor": ""}),
    ],
)
def test_put_and_patch_change_the_fields_that_they_are_given(client, method, change):
    response = getattr(client, method)("/courses/CSE115", change, status=204)
    assert (response.body, response.headers["Location"]) == (b"", "/courses/CSE115")
    assert get_list(client) == [CSE115 | change, CSE465]


def test_the_response_to_a_get_can_be_edited_and_sent_back_with_put(client):
    course = client.get("/courses/CSE115").json
    client.put_json(
        "/courses/CSE115", course | {"name": "Basics", "id": 99, "code": " CSE115 ", "other": [None]}, status=204
    )
    assert client.get("/courses/CSE115").json == course | {"name": "Basics"}


@pytest.mark.parametrize(
    ("method", "path", "body", "error"),
    [
        ("post_json", "/courses", CHANGE, CODE_MISSING),
        ("post_json", "/courses", BODY | {"code": "  "}, CODE_MISSING),
        ("post_json", "/courses", {"code": "CSE225", "name": "Data structures"}, BOTH),
        ("post_json", "/courses", {"code": "CSE225", "instructor": "Ada Lovelace"}, BOTH),
        ("post_json", "/courses", BODY | {"name": ""}, NAME_RULE),
        ("put_json", "/courses/CSE115", {}, BOTH),
        ("put_json", "/courses/CSE115", {"name": "Basics"}, BOTH),
        ("put_json", "/courses/CSE115", {"instructor": "Grace Hopper"}, BOTH),
        ("put_json", "/courses/CSE115", CHANGE | {"name": ""}, NAME_RULE),
        ("patch_json", "/courses/CSE115", {}, EITHER),
        ("patch_json", "/courses/CSE115", {"code": "CSE999"}, EITHER),
        ("patch_json", "/courses/CSE115", {"instructor": None}, "instructor must be a string"),
    ],
)
def test_a_missing_or_bad_field_is_named_and_nothing_changes(client, method, path, body, error):
    check_error(getattr(client, method)(path, body, status=400), error)
    assert get_list(client) == [CSE115, CSE465]


def test_delete_removes_a_course_and_its_location_leads_to_the_list(client):
    response = client.delete("/courses/CSE115", status=204)
    assert (response.body, response.headers["Location"]) == (b"", "/courses/")
    assert get_list(client, response.headers["Location"]) == [CSE465]


@pytest.mark.parametrize("code", ["CSE999", "cse115", "%0A", "CSE115%0A", "%20CSE115", "%25", "a" * 5000])
def test_an_unknown_code_is_not_found(client, code):
    path = f"/courses/{code}"
    check_error(client.get(path, status=404), UNKNOWN)
    check_error(client.put_json(path, CHANGE, status=404), UNKNOWN)
    check_error(client.patch_json(path, CHANGE, status=404), UNKNOWN)
    check_error(client.delete(path, status=400), UNKNOWN)
