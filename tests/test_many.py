"""Many courses at once, all or none, from JSON and CSV; test_csv.py has more about files."""

import json

import pytest
from description import check_error
from test_contract_inherited import BOTH, CHANGE, CSE115, CSE465, NEW, get, get_list

import course_api
import models

TWO = [NEW, {"code": "AAS 100", "name": "Intro Asian American Studies", "instructor": "Geng, Zhe"}]
HEADER = "code,name,instructor\n"
NAME_RULE = "name must be 1 to 120 characters, with no control characters"


def post_csv(client, text, status=201, path="/courses", content_type="text/csv"):
    body = text if isinstance(text, bytes) else text.encode()
    return client.post(path, body, content_type=content_type, status=status)


def codes(client):
    return [course["code"] for course in get_list(client)]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"courses": rows}])
def test_a_json_array_adds_each_of_its_courses(client, wrap):
    assert client.post_json("/courses", wrap(TWO), status=201).json == {"created": 2}
    assert get_list(client) == [CSE115, CSE465, *TWO]


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [
        ("", "utf-8-sig"),
        ("", "utf-16"),
        ("; charset=windows-1252", "cp1252"),
        ('; header=present; Charset="IBM850"', "cp850"),
    ],
)
def test_csv_is_read_in_the_encoding_that_it_declares(client, charset, encoding):
    text = "sep=;\nCode;Name;Instructor\nCSE225;Théorie;\n".encode(encoding)
    post_csv(client, text, content_type=f"text/csv{charset}")
    assert get(client, "CSE225") == {"code": "CSE225", "name": "Théorie", "instructor": ""}


@pytest.mark.parametrize(
    ("text", "charset", "error"),
    [
        ("code,name,Name,instructor\n", "", "the column name is named twice; remove one of them"),
        (HEADER + "A,a,a\n", "; charset=klingon", "there is no encoding klingon; use one like windows-1252"),
    ],
)
def test_csv_that_cannot_be_read_is_refused_with_what_was_found(client, text, charset, error):
    check_error(post_csv(client, text, 400, content_type=f"text/csv{charset}"), error)


def test_csv_in_another_encoding_is_refused_with_the_line_and_the_header_to_send(client):
    error = post_csv(client, HEADER.encode() + b"A,a,\nB,\xe9,\n", status=400).json["error"]
    assert error.lower().startswith("line 3 is not utf-8 text; ")
    assert "CSV UTF-8" in error and "Content-Type: text/csv; charset=windows-1252" in error


def test_every_bad_row_is_named_and_none_is_stored(client):
    rows = [NEW, {}, 5, NEW | {"name": ""}, NEW | {"instructor": 5}, {"code": "B", "name": "b"}, {"code": "C"}]
    errors = ["course code must be provided", "a course must be an object", NAME_RULE, "instructor must be a string"]
    named = [{"row": number, "error": error} for number, error in enumerate([*errors, BOTH, BOTH], 2)]
    for path in ("/courses", "/courses?update=true"):
        response = client.post_json(path, rows, status=400)
        check_error(response, "nothing was stored; 6 rows were refused", rows=named)
    assert codes(client) == ["CSE115", "CSE465"]


def test_a_row_of_csv_is_named_by_the_line_on_which_it_begins(client):
    text = 'Code,Name,Instructor\n\n"A","two\nlines",\n,,\nCSE115,a,\nB,,\nB,b,\n'
    response = post_csv(client, text, status=400)
    taken = "Course code CSE115 is in the courses already"
    named = [{"row": row, "error": error} for row, error in ((3, NAME_RULE), (6, taken), (7, NAME_RULE))]
    check_error(response, "nothing was stored; 3 rows were refused", rows=named)


def test_codes_that_are_taken_are_a_conflict_that_names_each(client):
    response = client.post_json("/courses", [NEW, CSE465, *TWO, CSE115], status=409)
    named = [
        {"row": 2, "error": "Course code CSE465 is in the courses already"},
        {"row": 3, "error": "Course code CSE225 is also in row 1"},
        {"row": 5, "error": "Course code CSE115 is in the courses already"},
    ]
    check_error(response, "nothing was stored; 3 rows were refused", rows=named)
    response = post_csv(client, HEADER + "A,a,a\n\nA,b,b\n", status=409)
    named = [{"row": 4, "error": "Course code A is also on line 2"}]
    check_error(response, "nothing was stored; 1 row was refused", rows=named)
    assert codes(client) == ["CSE115", "CSE465"]


def test_of_many_bad_rows_the_first_hundred_are_named(client):
    response = client.post_json("/courses", [{}] * 250, status=400)
    named = [{"row": number, "error": "course code must be provided"} for number in range(1, 101)]
    check_error(response, "nothing was stored; 250 rows were refused", rows=named)


def test_an_upload_of_nothing_adds_nothing(client):
    assert client.post_json("/courses", [], status=201).json == {"created": 0}
    assert post_csv(client, HEADER).json == {"created": 0}


def test_more_rows_than_the_limit_are_refused(client):
    error = "there are more than 400000 rows; send them in several requests"
    body = b"[" + b"{}," * course_api.MAX_ROWS + b"{}]"
    check_error(client.post("/courses", body, content_type="application/json", status=400), error)
    check_error(post_csv(client, HEADER + "a\n" * 400_001, status=400), error)


# -- Changing courses that exist ---------------------------------------------------------------------------------------

UPSERT = [CSE115 | CHANGE, CSE465, NEW]  # one is changed, one is as it was, one is new


def make_csv(rows):
    return HEADER + "".join(f"{row['code']},{row['name']},{row['instructor']}\n" for row in rows)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps(UPSERT), "application/json"),
        (json.dumps({"courses": UPSERT}), "application/json"),
        (make_csv(UPSERT), "text/csv"),
    ],
)
@pytest.mark.parametrize("path", ["/courses?update=true", "/courses/?update=true&token="])
def test_update_changes_courses_that_exist_and_adds_the_others(client, path, body, content_type):
    ids = [course["id"] for course in client.get("/courses").json["courses"]]
    response = post_csv(client, body, 200, path, content_type)
    assert response.json == {"created": 1, "updated": 1}
    assert [course["id"] for course in client.get("/courses").json["courses"]][:2] == ids
    assert get_list(client) == UPSERT
    assert post_csv(client, body, 200, path, content_type).json == {"created": 0, "updated": 0}


def test_update_takes_one_course_too(client):
    response = client.post_json("/courses?update=true", CSE115 | CHANGE, status=200)
    assert response.json == {"created": 0, "updated": 1}
    assert client.post_json("/courses?update=true", NEW, status=200).json == {"created": 1, "updated": 0}
    assert get_list(client) == UPSERT


def test_update_stores_nothing_if_a_row_is_bad(client):
    response = client.post_json("/courses?update=true", [CSE115 | CHANGE, NEW, NEW, NEW | {"name": ""}], status=400)
    named = [{"row": 3, "error": "Course code CSE225 is also in row 2"}, {"row": 4, "error": NAME_RULE}]
    check_error(response, "nothing was stored; 2 rows were refused", rows=named)
    assert get_list(client) == [CSE115, CSE465]


@pytest.mark.parametrize("value", ["false", "FALSE", ""])
def test_without_update_a_course_that_exists_is_a_conflict(client, value):
    client.post_json(f"/courses?update={value}", [CSE115], status=409)
    client.post_json(f"/courses?update={value}", CSE115, status=409)


@pytest.mark.parametrize("value", ["1", "yes", "true,true"])
def test_update_is_true_or_false(client, value):
    check_error(client.post_json(f"/courses?update={value}", [NEW], status=400), "update must be true or false")


# -- Out and in again --------------------------------------------------------------------------------------------------


def test_what_the_list_returns_as_csv_can_be_posted_back_unchanged(client):
    odd = {"code": '",;', "name": "a \"quoted\" 'name', é 物 😀", "instructor": "=1+1"}
    client.post_json("/courses", [odd, *TWO])
    before = client.get("/courses", headers={"Accept": "text/csv"}).body
    assert post_csv(client, before, 200, "/courses?update=true").json == {"created": 0, "updated": 0}
    models.Course.delete().execute()
    assert post_csv(client, before).json == {"created": 5}
    assert client.get("/courses", headers={"Accept": "text/csv"}).body == before


def test_what_the_list_returns_as_json_can_be_posted_back_unchanged(client):
    client.post_json("/courses", TWO)
    whole, before = client.get("/courses").json, get_list(client)
    models.Course.delete().execute()
    client.post_json("/courses", whole, status=201)
    assert get_list(client) == before
