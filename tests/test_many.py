"""Many courses at once, all or none; test_models.py has more about rows, test_csv.py about files."""

import json

import pytest
from catalogue import (
    BODY,
    CHANGE,
    CODE_MISSING,
    COURSE,
    CSE115,
    CSE465,
    HEADER,
    NAME_RULE,
    NEW,
    TAKEN,
    TWO,
    course,
    get,
    get_list,
    make_csv,
    post_csv,
    without_id,
)
from description import check_error

import course_api
import models
from records import XLSX


def check_refused(client, response, errors):
    """Check that an upload has been refused with these errors, each with its row, and that nothing is stored."""
    rows = [{"row": row, "error": error} for row, error in errors]
    summary = response.json["error"].partition(": ")[2]
    assert sum(int(part.split()[0]) for part in summary.split(", ")) == len(errors)
    check_error(response, f"nothing was stored; {len(errors)} rows were refused: {summary}", rows=rows)
    assert get_list(client) == [CSE115, CSE465]


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"courses": rows}])
def test_a_json_array_adds_each_of_its_courses(client, wrap):
    assert client.post_json("/courses", wrap(TWO), status=201).json == {"created": 2}
    assert get_list(client) == [CSE115, CSE465, *TWO]


@pytest.mark.parametrize(
    ("charset", "encoding"),
    [("", "utf-16"), ("; charset=windows-1252", "cp1252"), ('; header=present; Charset="IBM850"; a=b', "cp850")],
)
def test_csv_is_read_in_the_encoding_that_it_declares(client, charset, encoding):
    text = "sep=;\nCode;Name;Instructor\nCSE225;Théorie;\n".encode(encoding)
    assert post_csv(client, text, content_type=f"text/csv{charset}").json == {"created": 1}
    assert get(client, "CSE225") == course("CSE225", "Théorie", "")


def test_csv_that_cannot_be_read_is_refused_with_what_was_found(client):
    error = "there is no encoding klingon; use one like windows-1252"
    check_error(post_csv(client, HEADER, 400, content_type="text/csv; charset=klingon"), error)


@pytest.mark.parametrize("query", ["", "?update=true"])
def test_every_bad_row_of_json_is_named_and_none_is_stored(client, query):
    rows = [NEW, {}, 5, NEW | {"name": ""}, NEW | {"instructor": 5}, {"code": "B"}, NEW | CHANGE]
    errors = [CODE_MISSING, "a course must be an object", f"CSE225: {NAME_RULE}; it is empty"]
    errors += ["CSE225: instructor must be a string: 5", "B: Course name must be provided"]
    errors.append("Course code CSE225 repeats row 1 with another name and instructor")
    check_refused(client, client.post_json(f"/courses{query}", rows, status=400), list(enumerate(errors, 2)))


def test_a_bad_row_of_csv_is_named_by_the_line_on_which_it_begins(client):
    text = 'Code,Name,Instructor\n\n"A","two\nlines",\n,,\nCSE115,a,\nB,,\nB,b,\n'
    errors = [(3, f'A: {NAME_RULE}: "two\\nlines"'), (6, TAKEN), (7, f"B: {NAME_RULE}; it is empty")]
    check_refused(client, post_csv(client, text, status=400), errors)


def test_of_many_bad_rows_the_first_hundred_are_named(client):
    response = client.post_json("/courses", [{}] * 101, status=400)
    rows = [{"row": number, "error": CODE_MISSING} for number in range(1, 101)]
    error = "nothing was stored; 101 rows were refused: 101 codes missing; rows has the first 100, and leaves out 1"
    check_error(response, error, rows=rows)


def test_an_upload_of_nothing_adds_nothing(client):
    assert client.post_json("/courses", [], status=201).json == {"created": 0}
    assert post_csv(client, HEADER).json == {"created": 0}


def test_more_rows_than_the_limit_are_refused(client, monkeypatch):
    monkeypatch.setattr(course_api, "MAX_ROWS", 2)
    error = "there are more than 2 rows; send them in several requests"
    check_error(client.post_json("/courses", [{}] * 3, status=400), error)
    check_error(post_csv(client, HEADER + "\nA,a,\n,,\nB,b,\nC,c,\n", 400), error)
    client.post_json("/courses", TWO, status=201)
    post_csv(client, HEADER + "\nA,a,\n,,\nB,b,\n\n", 201)


# -- Changing courses that exist ---------------------------------------------------------------------------------------

UPSERT = [CSE115 | CHANGE, CSE465, NEW]  # one is changed, one is as it was, one is new


@pytest.mark.parametrize(
    ("path", "body", "content_type"),
    [
        ("/courses?update=true", json.dumps(UPSERT), "application/json"),
        ("/courses/?update=TRUE&token=", json.dumps({"courses": UPSERT}), "application/json"),
        ("/courses?update=true", make_csv(*UPSERT), "text/csv"),
    ],
)
def test_update_changes_courses_that_exist_and_adds_the_others(client, path, body, content_type):
    ids = [row["id"] for row in client.get("/courses").json["courses"]]
    assert post_csv(client, body, 200, path, content_type).json == {"created": 1, "updated": 1}
    assert [row["id"] for row in client.get("/courses").json["courses"]][:2] == ids
    assert get_list(client) == UPSERT
    assert post_csv(client, body, 200, path, content_type).json == {"created": 0, "updated": 0}


def test_one_course_stays_one_with_the_defaults_that_generated_clients_send(client):
    query = "repeats=refuse&update=false&skip_invalid=false&dry_run=false"
    response = client.post_json(f"/courses?{query}", BODY, headers={"Prefer": "return=representation"}, status=201)
    assert without_id(response.json) == NEW


@pytest.mark.parametrize("others", [{"code": "A"}, {"links": []}, {"next": None, "errors": [], "total": {}}])
def test_the_array_courses_is_the_list_whatever_else_there_is(client, others):
    assert client.post_json("/courses", others | {"courses": TWO}, status=201).json == {"created": 2}


def test_an_empty_body_is_said_to_be_empty(client):
    response = client.post("/courses", b" ", content_type="application/json", status=400)
    check_error(response, "there is no JSON in it; it is empty")


def test_update_takes_one_course_too(client):
    response = client.post_json("/courses?update=true", CSE115 | CHANGE, status=200)
    assert response.json == {"created": 0, "updated": 1}
    assert client.post_json("/courses?update=true", NEW, status=200).json == {"created": 1, "updated": 0}
    assert get_list(client) == UPSERT


@pytest.mark.parametrize("value", ["false", "FALSE", ""])
def test_without_update_a_course_that_exists_is_a_conflict(client, value):
    client.post_json(f"/courses?update={value}", CSE115, status=409)
    response = client.post_json(f"/courses?update={value}", [NEW, CSE115, CSE465], status=409)
    errors = [(2, TAKEN), (3, TAKEN.replace("CSE115", "CSE465"))]
    check_refused(client, response, errors)


@pytest.mark.parametrize("value", ["1", "yes", "true,true"])
def test_update_is_true_or_false(client, value):
    check_error(client.post_json(f"/courses?update={value}", [NEW], status=400), "update must be true or false")


# -- Options -----------------------------------------------------------------------------------------------------------

DRAWING = "Dept,Number,Title\nART,110,Drawing\nART,210,\nART,110,Drawing\n"
COLUMNS = "code=Dept&code=Number&name=Title"


def test_columns_can_be_chosen_and_good_rows_stored_without_the_others(client):
    error = post_csv(client, DRAWING, 400).json["error"]
    assert error.endswith("perhaps with ?code=Dept&code=Number&name=Title")
    errors = [{"row": 3, "error": f"ART 210: {NAME_RULE}; it is empty"}]
    assert post_csv(client, DRAWING, 400, f"/courses?{COLUMNS}").json["rows"] == errors
    counts = {"created": 1, "repeated": 1, "refused": 1, "rows": errors}
    assert post_csv(client, DRAWING, path=f"/courses?{COLUMNS}&skip_invalid=true").json == counts
    assert get(client, "ART 110") == course("ART 110", "Drawing", "")


def test_a_taken_code_is_refused_or_left_out(client):
    text = "code,name\nCSE115,Basics\nCSE225,Trees\n"
    counts = {"created": 1, "refused": 1, "rows": [{"row": 2, "error": TAKEN}]}
    assert post_csv(client, text, path="/courses?skip_invalid=true").json == counts
    assert get(client, "CSE115") == CSE115


def test_a_dry_run_stores_nothing_and_shows_what_would_be(client):
    text = "code,name,note\nCSE115,Basics,\ncse115,Twin,\n"
    assert post_csv(client, text, 200, "/courses?update=true&dry_run=true").json == {
        "created": 1,
        "updated": 1,
        "twins": ["cse115 looks like CSE115"],
        "columns": {"code": ["code"], "name": ["name"]},
        "courses": [{"code": "CSE115", "name": "Basics"}, {"code": "cse115", "name": "Twin"}],
    }
    assert get_list(client) == [CSE115, CSE465]


OPTIONS = {
    "header=code,name&dry_run=false": "CSE225,Data structures\n",
    "repeats=first": "code,name\nCSE225,Data structures\nCSE225,Trees\n",
    "code=Nr&name=name&instructor=": "Nr,name\nCSE225,Data structures\n",
}


@pytest.mark.parametrize(("query", "text"), OPTIONS.items(), ids=OPTIONS)
def test_an_option_reads_a_list_of_another_shape(client, query, text):
    post_csv(client, text, path=f"/courses?{query}")
    assert get(client, "CSE225") == course("CSE225", "Data structures", "")


@pytest.mark.parametrize("query", ["header=a&header=b", "repeats=last", "skip_invalid=1", "dry_run=x"])
def test_a_bad_option_is_refused(client, query):
    post_csv(client, "code,name\nA,a\n", 400, f"/courses?{query}")
    assert get_list(client) == [CSE115, CSE465]


def test_one_course_can_have_keys_of_other_names(client):
    client.post_json("/courses?name=title", {"code": "A", "title": "a", "instructor": ["B", "C"]}, status=201)
    assert get(client, "A") == course("A", "a", "B; C")


# -- Replacing all courses ---------------------------------------------------------------------------------------------


def put(client, rows, status=200, query="", **headers):
    return client.put_json(f"/courses{query}", rows, headers=headers, status=status)


def test_a_list_replaces_all_courses(client):
    ids = {row["code"]: row["id"] for row in client.get("/courses").json["courses"]}
    counts = {"created": 1, "updated": 1, "deleted": 1, "unchanged": 0}
    assert put(client, [NEW, CSE115 | CHANGE]).json == counts
    assert get_list(client) == [CSE115 | CHANGE, NEW]
    assert client.get("/courses/CSE115").json["id"] == ids["CSE115"]
    counts = {"created": 0, "updated": 0, "deleted": 0, "unchanged": 2}
    assert put(client, {"courses": get_list(client)}).json == counts


def test_an_empty_list_replaces_nothing(client):
    error = "there are no courses in it; an empty list would delete the whole catalogue"
    check_error(put(client, [], 400), error)
    check_error(put(client, [{"code": "", "name": ""}], 400, "?skip_invalid=true"), error)
    assert get_list(client) == [CSE115, CSE465]


def test_a_bad_row_leaves_the_course_that_it_names_alone(client):
    rows = [CSE115, CSE465 | {"name": ""}, NEW]
    put(client, rows, 400)
    assert put(client, rows, 200, "?skip_invalid=true").json["deleted"] == 0
    assert get_list(client) == [CSE115, CSE465, NEW]


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
def test_a_list_is_replaced_only_if_it_has_not_changed(client, accept):
    etag = client.get("/courses", headers={"Accept": accept}).headers["ETag"]
    put(client, [NEW, CSE115], 200, "?dry_run=true", **{"If-Match": etag})
    client.post_json("/courses", COURSE)
    check_error(put(client, [NEW], 412, **{"If-Match": etag}), course_api.LIST_CHANGED)
    assert get_list(client) == [CSE115, CSE465, COURSE]
    etag = client.get("/courses", headers={"Accept": accept}).headers["ETag"]
    put(client, [NEW], 412, **{"If-None-Match": etag})
    put(client, [NEW], 200, **{"If-Match": etag})
    put(client, [NEW], 200, **{"If-Match": "*"})
    assert get_list(client) == [NEW]


def test_a_change_between_the_condition_and_the_write_is_not_lost(client, monkeypatch):
    etag, store = client.get("/courses").headers["ETag"], models.Course.store_courses

    def late(*args, **options):
        models.Course.add_course(**NEW)
        return store(*args, **options)

    monkeypatch.setattr(models.Course, "store_courses", late)
    check_error(put(client, [CSE115], 412, **{"If-Match": etag}), course_api.LIST_CHANGED)
    assert get_list(client) == [CSE115, CSE465, NEW]


# -- Out and in again --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("media_type", ["application/json", "text/csv", XLSX])
def test_what_the_list_returns_can_be_posted_back_unchanged(client, media_type):
    odd = ["a\"b'c", "a,b;c", "sep=;", "=1+1", "é 物 😀", "a\u2028b", '",;']
    client.post_json("/courses", [course(f"C{i}", text, text) for i, text in enumerate(odd)])
    before = get_list(client)
    body = client.get("/courses", headers={"Accept": media_type}).body
    response = post_csv(client, body, 200, "/courses?update=true", media_type)
    assert response.json == {"created": 0, "updated": 0}
    models.Course.delete().execute()
    post_csv(client, body, content_type=media_type)
    assert get_list(client) == before
