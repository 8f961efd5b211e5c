"""docs/extending.md is taken at its word: a copy of the project with its fields and its route does all that it says."""

import json
import re
import shutil
from urllib.parse import urlencode

import pytest
from catalogue import BODY, DEFAULTS, make_csv
from processes import ROOT, Server, database_url, run_program
from servers import ask, execute

FIELDS, MIGRATION, ROUTE = re.findall(r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
NEW = BODY | {"credits": 0, "summary": ""} | DEFAULTS
ONE = "/courses/CSE225"
RULE = "credits must be a whole number from 0 to 60"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a copy of the project, to which the steps of the document have been applied."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("docs", "migrations"):
        shutil.copytree(ROOT / name, folder / "project" / name)
    for file in ROOT.glob("*.py"):
        shutil.copy(file, folder / "project")
    add(folder / "project/models.py", r"(?<=\n)    instructor = Text\(.*\n", FIELDS)
    add(folder / "project/course_api.py", r"(?=# -- Login)", f"{ROUTE}\n\n")
    (folder / "project/migrations/1000_credits.py").write_text(MIGRATION)
    assert run_program(folder, folder / "project/seed.py").returncode == 0
    return folder


def add(file, place, text):
    """Add text to a file, behind the one place that a pattern finds."""
    changed, number = re.subn(place, lambda found: found[0] + text, file.read_text())
    assert number == 1
    file.write_text(changed)


@pytest.fixture(scope="module")
def server(folder):
    server = Server(folder, folder / "project/course_api.py", TOKEN_SECONDS="10000")
    yield server
    server.close()


@pytest.fixture(scope="module")
def bearer(server):
    return server.bearer()


@pytest.fixture
def send(folder, server, bearer):
    """A function that sends a request, checks the status, and returns the headers and the text of the response.

    There are no courses at first. The responses are not those of openapi.yaml, which has no such fields.
    """
    execute(database_url(folder), "DELETE FROM courses")

    def send(method, path, body=None, status=200, **headers):
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        found, received, text = ask(server.url, method, path, body, bearer | headers)
        assert found == status, text
        return received, text

    return send


@pytest.fixture
def seed(folder, send):
    """A function that runs a command of the copy's seed.py on the same courses; returns what it prints first."""

    def seed(*arguments, stdin=""):
        done = run_program(folder, folder / "project/seed.py", *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return seed


def get(send, path=ONE):
    """Return a course without its id."""
    course = json.loads(send("GET", path)[1])
    del course["id"]
    return course


def get_list(send, **query):
    """Return the courses of a list."""
    return json.loads(send("GET", f"/courses?{urlencode(query)}")[1])["courses"]


def check_error(send, method, path, error, body=None, status=400, **headers):
    assert json.loads(send(method, path, body, status, **headers)[1])["error"] == error


def add_courses(send, *credit_numbers):
    """Add a course for each number of credits, C0, C1 and so on, whose summaries are in another order."""
    rows = [
        BODY | {"code": f"C{number}", "credits": value, "summary": f"Summary {-value % 7}"}
        for number, value in enumerate(credit_numbers)
    ]
    send("POST", "/courses", rows, 201)
    return rows


# -- One course --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{}, {"credits": 0}, {"credits": 60}, {"credits": 3.0}, {"credits": 3, "summary": " Trees "}]
)
def test_a_course_has_what_is_given_and_else_the_defaults(send, given):
    send("POST", "/courses", BODY | given, 201)
    course = get(send)
    assert course == NEW | given | {"summary": given.get("summary", "").strip()}
    assert type(course["credits"]) is int
    send("DELETE", ONE, status=204)
    send("POST", "/courses", [BODY | given], 201)
    assert get(send) == course


@pytest.mark.parametrize("value", [True, False, "3", 1.5, -1, 61, [3, "x"], 10**30])
def test_a_value_that_breaks_the_rule_is_refused(send, value):
    check_error(send, "POST", "/courses", RULE, BODY | {"credits": value})
    send("POST", "/courses", BODY, 201)
    for method in ("PUT", "PATCH"):
        check_error(send, method, ONE, RULE, BODY | {"credits": value})
    rows = json.loads(send("POST", "/courses", [BODY | {"credits": value}], 400)[1])["rows"]
    assert [row["error"].startswith(f"CSE225: {RULE}") for row in rows] == [True]
    assert get(send) == NEW


@pytest.mark.parametrize("value", ["", None])
def test_a_blank_number_is_refused_for_one_course_and_not_given_in_a_list(send, value):
    check_error(send, "POST", "/courses", RULE, BODY | {"credits": value})
    send("POST", "/courses", [BODY | {"credits": value}], 201)
    assert get(send) == NEW


def test_a_text_has_its_rule_too(send):
    error = "summary must be 0 to 500 characters, with no control characters"
    check_error(send, "POST", "/courses", error, BODY | {"summary": "x" * 501})
    check_error(send, "POST", "/courses", "summary must be a string", BODY | {"summary": 5})
    send("POST", "/courses", BODY | {"summary": "x" * 500}, 201)


def test_a_change_leaves_a_field_that_it_does_not_give(send):
    given = {"credits": 6, "summary": "Trees"}
    change = {"name": "Basics", "instructor": ""}
    send("POST", "/courses", BODY | given, 201)
    send("PUT", ONE, change, 204)
    assert get(send) == NEW | given | change
    send("PATCH", ONE, {"name": "Graphs"}, 204)
    send("POST", "/courses?update=true", [BODY], 200)
    assert get(send) == NEW | given
    send("POST", "/courses?update=true", f"code,name,instructor\n{','.join(BODY.values())}", Content_Type="text/csv")
    assert get(send) == NEW | given


def test_a_change_sets_a_field_that_it_gives_and_0_is_a_value(send):
    send("POST", "/courses", BODY | {"credits": 6, "summary": "Trees"}, 201)
    send("PUT", ONE, BODY | {"credits": 0}, 204)
    assert get(send) == NEW | {"summary": "Trees"}
    send("PATCH", ONE, {"credits": 7}, 204)
    send("PATCH", ONE, {"summary": ""}, 204)
    assert get(send) == NEW | {"credits": 7}
    send("POST", "/courses?update=true", BODY | {"credits": 0}, 200)
    assert get(send) == NEW
    check_error(send, "PATCH", ONE, "Course name or instructor's name must be provided", {"code": "CSE225"})
    check_error(send, "PUT", ONE, "Course name and instructor's name must be provided", {"credits": 7})


def test_a_change_of_the_field_changes_the_etag(send):
    send("POST", "/courses", BODY, 201)
    etag = send("GET", ONE)[0]["ETag"]
    send("PATCH", ONE, {"credits": 1}, 204, If_Match=etag)
    for method in ("PATCH", "DELETE"):
        send(method, ONE, {"credits": 2}, 412, If_Match=etag)
    send("GET", ONE, status=200, If_None_Match=etag)
    send("GET", ONE, status=304, If_None_Match=send("GET", ONE)[0]["ETag"])
    send("DELETE", ONE, status=204, If_Match=send("GET", ONE)[0]["ETag"])


# -- Lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sort", ["credits", "-credits", "summary", "-summary"])
def test_a_list_is_sorted_and_walked_by_the_field(folder, send, sort):
    add_courses(send, 3, 12, 0, 3, 60, 12)
    execute(database_url(folder), "UPDATE courses SET credits = 99, summary = '99' WHERE code = 'C1'")
    field = sort.removeprefix("-")
    courses = sorted(get_list(send), key=lambda course: (course[field], course["id"]), reverse=sort.startswith("-"))
    assert get_list(send, sort=sort) == courses
    path, walked = f"/courses?limit=2&sort={sort}", []
    while path:
        headers, text = send("GET", path)
        walked += json.loads(text)["courses"]
        path = next(iter(re.findall(r'<([^>]*)>; rel="next"', headers["Link"])), None)
    assert walked == courses


@pytest.mark.parametrize("value", ["", "x", "1.5", "0x3", "3' OR 1", "\u0663", "9" * 30, "-" + "9" * 30])
def test_a_cursor_that_no_link_has_is_refused(send, value):
    error = "after must be copied from the link to the next page"
    check_error(send, "GET", "/courses?" + urlencode({"sort": "credits", "after": f"credits:1:{value}"}), error)


def test_a_number_is_a_filter_and_a_text_only_if_it_says_so(send):
    rows = add_courses(send, 6, 0, 6)
    for value in (6, 0):
        codes = [row["code"] for row in rows if row["credits"] == value]
        assert [course["code"] for course in get_list(send, credits=value)] == codes
    assert [course["code"] for course in get_list(send, credits=6, limit=1, sort="-credits", q="data")] == ["C2"]
    assert get_list(send, credits=7) == []
    assert len(get_list(send, credits=" ")) == 3
    for value in ("x", "61", "-1", "1.5", "true"):
        check_error(send, "GET", f"/courses?credits={value}", RULE)
    assert "there is no parameter summary" in send("GET", "/courses?summary=x", status=400)[1]


def test_a_search_finds_texts_and_no_numbers(send):
    send("POST", "/courses", BODY | {"credits": 42, "summary": "Trees, 100 % of them"}, 201)
    for q, found in (("TREES", 1), ("100 %", 1), ("42", 0)):
        assert len(get_list(send, q=q)) == found


# -- Files -------------------------------------------------------------------------------------------------------------

FILE = make_csv(NEW, NEW | {"code": "CSE226", "credits": 6, "summary": "Trees, and more"}, fields=NEW)


def test_csv_has_the_field_and_is_taken_back_unchanged(send):
    send("POST", "/courses", FILE, 201, Content_Type="text/csv")
    assert get(send, "/courses/CSE226")["credits"] == 6
    text = send("GET", "/courses", Accept="text/csv")[1]
    assert text == FILE
    counts = send("POST", "/courses?update=true", text, Content_Type="text/csv")[1]
    assert json.loads(counts) == {"created": 0, "updated": 0}  # each is as it was


def test_seed_exports_and_imports_the_field(seed, send, folder):
    assert seed("import", "-", stdin=FILE).startswith("Added 2 courses.")
    assert seed("export", "-") == FILE.replace("\r\n", "\n")
    seed("export", "courses.json")
    send("PATCH", ONE, {"credits": 9}, 204)
    assert seed("import", "courses.json", "--update").startswith("Added 0 courses, updated 1, 1 unchanged.")
    assert get(send) == NEW


def test_a_blank_cell_of_a_number_is_not_given(send):
    text = "code,name,instructor,credits,summary\nCSE225,Data structures,Ada Lovelace,  ,Trees\n"
    send("POST", "/courses", text, 201, Content_Type="text/csv")
    assert get(send) == NEW | {"summary": "Trees"}
    send("PATCH", ONE, {"credits": 6}, 204)
    send("POST", "/courses?update=true", text.replace("Trees", ""), 200, Content_Type="text/csv")
    assert get(send) == NEW | {"credits": 6}


@pytest.mark.parametrize("cell", ["x", "1.5", "61", "-1", "true"])
def test_a_bad_cell_is_named_by_its_line(send, cell):
    text = f"code,name,instructor,credits\nCSE225,Data structures,Ada Lovelace,{cell}\n"
    rows = json.loads(send("POST", "/courses", text, 400, Content_Type="text/csv")[1])["rows"]
    assert rows[0]["row"] == 2 and rows[0]["error"].startswith(f"CSE225: {RULE}")


# -- From Python, and the route ----------------------------------------------------------------------------------------


def test_the_methods_of_course_take_the_field(folder, send):
    (folder / "project/program.py").write_text(
        """from models import Course
assert Course.add_course(code="A", name="A", instructor="", credits=3)
assert Course.get_course("A")["credits"] == 3
assert Course.update_course("A", credits=0)
assert Course.update_course("A", summary="Trees")
assert (Course.get_course("A")["credits"], Course.get_course("A")["summary"]) == (0, "Trees")
assert Course.get_page(credits=0, sort="-credits")[0] == 1
for method in (Course.add_course, Course.update_course):
    try:
        method(code="B", name="B", instructor="", credit=3)
    except TypeError as error:
        assert str(error).startswith("a course has no field credit; its fields are code, name, instructor, credits")
    else:
        raise AssertionError
"""
    )
    done = run_program(folder, folder / "project/program.py")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_route_is_protected_and_answers(server, send):
    add_courses(send, 1, 2)
    assert json.loads(send("GET", "/instructors")[1]) == ["Ada Lovelace"]
    assert ask(server.url, "GET", "/instructors")[0] == 401
