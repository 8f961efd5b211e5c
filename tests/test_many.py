"""Part C of the contract: many courses at once, all or none, from JSON and CSV."""

import json

import pytest
from test_contract_inherited import CSE115, CSE465, NEW, get

import course_api
import models

TWO = [NEW, {"code": "AAS 100", "name": "Intro Asian American Studies", "instructor": "Geng, Zhe"}]
HEADER = "code,name,instructor\n"


def post_csv(client, text, status=201):
    body = text if isinstance(text, bytes) else text.encode()
    return client.post("/courses", body, content_type="text/csv", status=status)


def codes(client):
    return [course["code"] for course in client.get("/courses").json["courses"]]


def test_a_json_array_adds_each_of_its_courses(client):
    answer = client.post_json("/courses", TWO, status=201)
    assert answer.json == {"created": 2}
    assert codes(client) == ["CSE115", "CSE465", "CSE225", "AAS 100"]


def test_csv_adds_each_of_its_rows(client):
    answer = post_csv(client, HEADER + 'CSE225,Data structures,Ada Lovelace\r\nAAS 100,"Intro ""A""","Geng, Zhe"')
    assert answer.json == {"created": 2}
    assert get(client, "AAS%20100") == {"code": "AAS 100", "name": 'Intro "A"', "instructor": "Geng, Zhe"}


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfcode,name,instructor\nCSE225,Data structures,Ada Lovelace\n",
        "id,instructor,name,code,room\n7,Ada Lovelace,Data structures,CSE225,5\n",
        'code, name, instructor\n"CSE225", "Data structures", "Ada Lovelace"\n',
        "code,name,instructor\r\n\r\n CSE225 ,Data structures, Ada Lovelace \r\n\r\n",
        "code,name,instructor\rCSE225,Data structures,Ada Lovelace\r",
    ],
)
def test_csv_is_read_as_programs_write_it(client, text):
    post_csv(client, text)
    assert get(client, "CSE225") == NEW


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "the first line must name the columns code, name and instructor"),
        ("CSE225,Data structures,Ada Lovelace\n", "the first line must name the columns code, name and instructor"),
        ("code;name;instructor\n", "the first line must name the columns code, name and instructor"),
        (HEADER + 'CSE225,"Data structures,Ada\n\n', "line 3 is not CSV: unexpected end of data"),
        (HEADER + "CSE225,Data\n" + 'A,"b"c,d\n', "line 3 is not CSV"),
        (HEADER.encode() + b"CSE225,\xff,Ada\n", "utf-8"),
        (HEADER + "CSE225," + "a" * 200_000 + ",Ada\n", "line 2 is not CSV: field larger than field limit"),
    ],
)
def test_what_is_not_csv_is_refused_with_the_line(client, text, error):
    assert error in post_csv(client, text, status=400).json["error"]
    assert codes(client) == ["CSE115", "CSE465"]


def test_every_bad_row_is_named_and_none_is_stored(client):
    rows = [NEW, {}, 5, NEW | {"code": "A/B"}, NEW | {"code": "B", "name": ""}, NEW | {"code": "C", "instructor": 5}]
    answer = client.post_json("/courses", rows, status=400)
    assert answer.json["error"] == "nothing was stored; rows refused: 5"
    assert [row["row"] for row in answer.json["rows"]] == [2, 3, 4, 5, 6]
    assert [row["error"].partition(",")[0] for row in answer.json["rows"]] == [
        "course code must be provided",
        "a course must be an object",
        "code must be 1 to 20 characters",
        "name must be 1 to 120 characters",
        "instructor must be a string",
    ]
    assert codes(client) == ["CSE115", "CSE465"]


def test_the_rows_of_csv_are_counted_without_the_header(client):
    answer = post_csv(client, HEADER + "A,a,a\nB,b,\nC\nD,a,b,c\nE,,a\n", status=400)
    assert [row["row"] for row in answer.json["rows"]] == [2, 3, 4, 5]
    assert "more fields than columns" in answer.json["rows"][2]["error"]


def test_codes_that_are_taken_are_a_conflict_that_names_each(client):
    answer = client.post_json("/courses", [NEW, CSE465, *TWO, CSE115], status=409)
    assert answer.json["rows"] == [
        {"row": 2, "error": "Course code CSE465 is in the courses already"},
        {"row": 3, "error": "Course code CSE225 is in row 1 too"},
        {"row": 5, "error": "Course code CSE115 is in the courses already"},
    ]
    assert codes(client) == ["CSE115", "CSE465"]


def test_bad_rows_and_taken_codes_are_named_together(client):
    answer = client.post_json("/courses", [CSE115, {}, NEW], status=400)
    assert [row["row"] for row in answer.json["rows"]] == [1, 2]


def test_of_many_bad_rows_the_first_hundred_are_named_and_the_others_counted(client):
    answer = client.post_json("/courses", [{}] * 250, status=400)
    assert [row["row"] for row in answer.json["rows"]] == list(range(1, 101))
    assert "250" in answer.json["error"] and "150 more" in answer.json["error"]


def test_an_upload_of_nothing_adds_nothing(client):
    assert client.post_json("/courses", [], status=201).json == {"created": 0}
    assert post_csv(client, HEADER).json == {"created": 0}


def test_what_the_list_gives_as_csv_can_be_posted_back_unchanged(client):
    odd = {"code": '",;', "name": "  a \"quoted\" 'name', é 物 😀 ", "instructor": "=1+1"}
    client.post_json("/courses", [odd, *TWO])
    before = client.get("/courses", headers={"Accept": "text/csv"}).body
    models.Course.delete().execute()
    assert post_csv(client, before).json == {"created": 5}
    assert client.get("/courses", headers={"Accept": "text/csv"}).body == before


def test_what_the_list_gives_as_json_can_be_posted_back_unchanged(client):
    client.post_json("/courses", TWO)
    before = client.get("/courses").json["courses"]
    models.Course.delete().execute()
    client.post_json("/courses", before, status=201)
    after = client.get("/courses").json["courses"]
    assert [course | {"id": 0} for course in after] == [course | {"id": 0} for course in before]


def test_a_write_that_fails_half_way_stores_nothing(client, monkeypatch):
    monkeypatch.setattr(models, "BATCH", 2)
    rows = [NEW | {"code": f"C{number}"} for number in range(7)]
    assert client.post_json("/courses", [*rows, CSE465], status=409).json["rows"][0]["row"] == 8
    assert codes(client) == ["CSE115", "CSE465"]
    assert client.post_json("/courses", rows, status=201).json == {"created": 7}


def test_more_rows_than_memory_is_kept_for_are_refused_at_once(client):
    body = b"[" + b"{}," * course_api.MAX_ROWS + b"{}]"
    error = client.post("/courses", body, content_type="application/json", status=400).json["error"]
    assert "400000" in error
    assert "more than 400000 rows" in post_csv(client, HEADER + "a\n" * 400_001, status=400).json["error"]


def test_other_members_of_a_row_are_ignored(client):
    client.post("/courses", json.dumps([NEW | {"id": 1, "line": [], "x": None}]), content_type="application/json")
    assert get(client, "CSE225") == NEW


def test_a_wrong_content_type_is_answered_with_both_right_ones(client):
    error = client.post("/courses", b"<xml/>", content_type="text/xml", status=415).json["error"]
    assert "application/json or text/csv" in error
