"""Lists of courses: searched, sorted, cut into pages, walked by cursors, and as CSV; and what a query may hold."""

import json
import random
import re
import urllib.parse

import pytest
from catalogue import (
    CSE115,
    CSE465,
    DEFAULTS,
    FIELDS,
    NEW,
    codes,
    course,
    get_list,
    insert,
    join_with_or,
    make_csv,
    make_token,
)
from description import check_error

import course_api
import models

COURSES = [  # in the order they are added
    course("MATH&151", "Calculus 100%", "Noether, Emmy"),
    course("6.006", "Introduction to Algorithms", "Liskov, Barbara"),
    course("AAS 100", "Intro_Asian American Studies", "Geng, Zhe"),
    course("ÉCO 1", "Économie, sous-titre *[x]?", ""),
    course("aas 200", "algorithms at night", "Geng, Zhe"),
]


@pytest.fixture
def catalogue(client):
    models.Course.delete().execute()
    models.Course.store_courses(COURSES)
    return client


def links(response):
    return {name: url for url, name in re.findall(r'<([^>]*)>; rel="(\w+)"', response.headers["Link"])}


@pytest.mark.parametrize(
    ("query", "found", "total"),
    [
        ("", [row["code"] for row in COURSES], 5),
        ("q=ALGO", ["6.006", "aas 200"], 2),  # test_properties.py has more of q
        ("q=+%25+", ["MATH&151"], 1),
        ("q=*[x", ["ÉCO 1"], 1),
        ("q=éCONOMIE,+SOUS-TITRE+*[X]?", ["ÉCO 1"], 1),
        ("q=Calculus+Noether", [], 0),
        ("instructor=Geng,+Zhe", ["AAS 100", "aas 200"], 2),
        ("instructor=Geng", [], 0),
        ("instructor=Geng,+Zhe&q=night", ["aas 200"], 1),
        ("limit=2", ["MATH&151", "6.006"], 5),
        ("limit=2&offset=3", ["ÉCO 1", "aas 200"], 5),
        ("offset=5", [], 5),
        ("limit=1&offset=1&q=algo&sort=-code", ["6.006"], 2),
    ],
)
def test_filters_and_pages_are_combined(catalogue, query, found, total):
    response = catalogue.get("/courses?" + urllib.parse.quote(query, safe="%&=+"))
    assert codes(response) == found
    assert response.headers["X-Total-Count"] == str(total)


def test_sort_is_by_a_field_and_then_by_id(catalogue):
    everything = catalogue.get("/courses").json["courses"]
    for field in ("id", *FIELDS):
        ascending = sorted(everything, key=lambda course: (course[field], course["id"]))
        assert catalogue.get(f"/courses?sort={field}").json["courses"] == ascending
        assert catalogue.get(f"/courses?sort=-{field}").json["courses"] == ascending[::-1]


# -- What a query may hold ---------------------------------------------------------------------------------------------

PARAMETERS = next(
    route.config["parameters"] for route in course_api.app.routes if (route.method, route.rule) == ("GET", "/courses")
)
LIST = ", ".join(PARAMETERS)
BAD_QUERIES = {
    f"there is no parameter page; use {LIST}": "page=2",
    f"there is no parameter Limit; use {LIST}": "Limit=2",
    f"there is no parameter update; use {LIST}": "update=true",
    "the parameter limit is repeated; send it once": "limit=1&limit=2",
    "limit must be a whole number from 1 to 1000": f"limit=0 limit=1001 limit=-1 limit=1.5 limit=null limit={'9' * 23}",
    "offset must be a whole number, 0 or more": f"offset=-1 offset=x offset={'9' * 23}",
    f"sort must be {join_with_or(['id', *FIELDS])}, with - in front for descending order": "sort=a sort=--id "
    "sort=id,name",
    "q must be 1 to 120 characters, with no control characters": f"q=a%00b q={'a' * 121}",
    "instructor must be 1 to 120 characters, with no control characters": "instructor=a%0Ab",
    "prefix must be 1 to 20 characters, with no control characters": f"prefix=a%0Ab prefix=a%0A prefix={'a' * 21}",
    "format must be json, csv or xlsx": "format=pdf format=JSON",
    "after must be copied from the link to the next page": "after=5 after=id:5 after=id:-1:5 after=id:%D9%A3:5 "
    f"after=id:{'9' * 19}:5 after=nothing:5:5 after=name:5:a%00",
    "after belongs to another sort; send both as in the link": "after=name:5:a&sort=code after=-id:5:5",
    "the query must be percent-encoded UTF-8": "q=%FF",
}


def test_the_list_takes_these_parameters():
    assert [name for name in PARAMETERS if name not in DEFAULTS] == [
        "q",
        "prefix",
        "instructor",
        "sort",
        "limit",
        "offset",
        "after",
        "format",
    ]


@pytest.mark.parametrize(("error", "queries"), BAD_QUERIES.items(), ids=BAD_QUERIES.values())
def test_a_bad_query_is_refused_with_the_rule(client, error, queries):
    for query in queries.split():
        check_error(client.get(f"/courses?{query}", status=400), error)


UPLOAD = f"use {', '.join(FIELDS)}{{}}, header, repeats, sheet, skip_invalid, dry_run"


@pytest.mark.parametrize(
    ("method", "path", "use"),
    [
        ("POST", "/courses", UPLOAD.format(", update")),
        ("PUT", "/courses", UPLOAD.format("")),
        ("GET", "/courses/CSE115", "this path takes none but token"),
        ("PUT", "/courses/CSE115", "this path takes none but token"),
        ("PATCH", "/courses/CSE115", "this path takes none but token"),
        ("DELETE", "/courses/CSE115", "this path takes none but token"),
    ],
)
def test_an_unknown_parameter_is_refused_on_every_route(client, method, path, use):
    response = client.request(f"{path}?page=2", method=method, body=json.dumps(NEW).encode(), status=400)
    check_error(response, f"there is no parameter page; {use}")
    assert get_list(client) == [CSE115, CSE465]


def test_what_keeps_caches_out_is_ignored_on_every_route(client):
    """jQuery's cache: false sends the time as `_`."""
    page = client.get("/courses?_=1700000000&limit=1")
    assert "_=" not in links(page)["next"]
    for method in ("GET", "DELETE"):
        client.request("/courses/CSE115?_=1700000000", method=method, status=[200, 204])


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_blank_parameter_counts_as_not_given(client, name):
    for blank in ("", "%20+"):
        response = client.get(f"/courses?{name}={blank}")
        assert codes(response) == ["CSE115", "CSE465"]
        assert "Link" not in response.headers


# -- The beginning of the code -----------------------------------------------------------------------------------------


def test_prefix_finds_the_codes_that_begin_so(catalogue):
    for prefix, found in (
        ("AAS", ["AAS 100"]),
        ("aas", ["aas 200"]),
        ("%20A", ["AAS 100"]),
        ("AAS%20", ["AAS 100"]),
        ("AAS%20%20", []),
        ("6.", ["6.006"]),
        ("%25", []),
        ("_", []),
        ("%C3%89", ["ÉCO 1"]),
        ("MATH%26151", ["MATH&151"]),
        ("MATH%261510", []),
    ):
        assert codes(catalogue.get(f"/courses?prefix={prefix}")) == found, prefix
    assert codes(catalogue.get("/courses?prefix=AAS&q=intro&instructor=Geng,%20Zhe")) == ["AAS 100"]
    assert codes(catalogue.get("/courses?prefix=AAS&q=algo")) == []


def test_prefix_is_right_for_any_text(client):
    """Characters at the ends of what the databases sort, and next to the gap that Unicode leaves for surrogates."""
    letters = [
        "a",
        "b",
        "A",
        "ä",
        "%",
        "_",
        "*",
        "'",
        "\\",
        "~",
        "\ud7ff",
        "\ue000",
        "\uffff",
        "\U00010000",
        "\U0010ffff",
    ]
    rng = random.Random(6)
    texts = {"".join(rng.choices(letters, k=rng.randrange(1, 5))) for _ in range(150)} | {"\U0010ffff" * 20}
    models.Course.delete().execute()
    models.Course.store_courses([course(code, "N", "") for code in sorted(texts)])
    for prefix in {text[:length] for text in texts for length in (1, 2, 3)}:
        found = codes(client.get("/courses", {"prefix": prefix}))
        assert found == [code for code in sorted(texts) if code.startswith(prefix)]


def test_the_pages_of_a_prefix_keep_it(catalogue):
    models.Course.store_courses([course(code, "N", "") for code in ("CSE", *(f"CSE {n}" for n in range(5)))])
    seen, path = [], "/courses?prefix=CSE%20&limit=2&sort=-code"
    while path:
        page = catalogue.get(path)
        assert page.headers.get("X-Total-Count", "5") == "5"
        seen += codes(page)
        path = links(page).get("next")
    assert seen == [f"CSE {n}" for n in (4, 3, 2, 1, 0)]


# -- Pages -------------------------------------------------------------------------------------------------------------


def test_the_links_lead_from_page_to_page_and_keep_the_other_parameters(catalogue):
    first = catalogue.get("/courses?limit=2&sort=code&q=al&instructor=")
    assert set(links(first)) == {"first", "last", "next"}
    second = catalogue.get(links(first)["last"])
    assert set(links(second)) == {"first", "prev", "last"}
    assert (codes(first), codes(second)) == (["6.006", "MATH&151"], ["aas 200"])
    assert catalogue.get(links(second)["prev"]).json == first.json
    assert catalogue.get(links(second)["first"]).json == first.json
    assert catalogue.get(links(first)["next"]).json == second.json


def test_a_page_reached_through_after_counts_nothing_and_leads_to_the_first_and_the_next(catalogue):
    first = catalogue.get("/courses?limit=2&sort=-name")
    assert first.headers["X-Total-Count"] == "5"
    second = catalogue.get(links(first)["next"])
    third = catalogue.get(links(second)["next"])
    assert [set(links(page)) for page in (second, third)] == [{"first", "next"}, {"first"}]
    assert not any("X-Total-Count" in page.headers for page in (second, third))
    assert catalogue.get(links(third)["first"]).json == first.json


@pytest.mark.parametrize("sort", ["name", "-name", "instructor"])
def test_the_links_also_lead_over_courses_that_only_an_older_program_could_add(client, sort):
    for number, instructor in enumerate(["bob ", "bob", "bob ", "  bob"]):
        insert(course(f"OLD{number}", instructor, instructor))
    walked, page = [], client.get(f"/courses?limit=1&sort={sort}")
    while "next" in links(page) and len(walked) < 8:
        walked += codes(page)
        page = client.get(links(page)["next"])
    assert sorted(walked + codes(page)) == sorted(codes(client.get("/courses")))
    client.get(f"/courses?limit=1&sort={sort}&after={sort}:5:{'b' * 1000}%0A", status=200)


def test_an_empty_list_has_a_first_and_a_last_page(client):
    models.Course.delete().execute()
    response = client.get("/courses?limit=10")
    assert (response.json, response.headers["X-Total-Count"]) == ({"courses": []}, "0")
    assert set(links(response)) == {"first", "last"}


@pytest.mark.parametrize(("limit", "last"), [(2, 4), (5, 0)])
def test_a_page_beyond_the_end_leads_back_to_the_last_one(catalogue, limit, last):
    response = catalogue.get(f"/courses?limit={limit}&offset=100")
    assert links(response)["prev"] == links(response)["last"] == f"/courses?limit={limit}&offset={last}"


def test_a_link_keeps_the_token_of_the_query(stranger):
    response = stranger.get(f"/courses?limit=1&token={make_token('faisal')}")
    stranger.get(links(response)["next"], status=200)


@pytest.mark.parametrize("sort", ["id", "-id", "code", "-name", "instructor"])
def test_following_next_returns_each_course_once_while_others_come_and_go(client, sort):
    models.Course.delete().execute()
    rng = random.Random(5)
    stay = {f"S{number}" for number in range(60)}
    go = [f"G{number}" for number in range(60)]
    rows = [{"code": code, "name": f"N{rng.randrange(10)}", "instructor": ""} for code in [*sorted(stay), *go]]
    models.Course.store_courses(rng.sample(rows, len(rows)))
    seen, path = [], f"/courses?limit=10&sort={sort}"
    while path:
        response = client.get(path)
        seen += codes(response)
        path = links(response).get("next")
        for number in range(min(5, len(go))):
            models.Course.delete_course(go.pop())
            models.Course.add_course(code=f"{len(go)}-{number}", name=f"N{number}", instructor="I")
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)


# -- CSV ---------------------------------------------------------------------------------------------------------------


def test_a_page_of_csv_has_the_courses_and_the_headers_of_one_of_json(catalogue):
    path = "/courses?q=algo&limit=1"
    as_csv, as_json = (catalogue.get(path, headers={"Accept": kind}) for kind in ("text/csv", "*/*"))
    assert as_csv.text == make_csv(COURSES[1])
    assert as_csv.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    for name in ("Link", "X-Total-Count", "Vary"):
        assert as_csv.headers[name] == as_json.headers[name]
    assert as_csv.headers["ETag"] != as_json.headers["ETag"]


@pytest.mark.parametrize(("name", "content_type"), [("csv", "text/csv"), ("json", "application/json")])
@pytest.mark.parametrize("accept", ["text/csv", "application/json", ""])
def test_format_gives_a_file_whatever_accept_says(catalogue, name, content_type, accept):
    as_file = catalogue.get(f"/courses?format={name}&limit=1", headers={"Accept": accept})
    assert as_file.headers["Content-Disposition"] == f'attachment; filename="courses.{name}"'
    assert f"format={name}" in links(as_file)["next"]
    as_accept_says = catalogue.get("/courses?limit=1", headers={"Accept": content_type})
    assert (as_file.body, as_file.headers["ETag"]) == (as_accept_says.body, as_accept_says.headers["ETag"])
    assert as_file.headers["Content-Type"] == as_accept_says.headers["Content-Type"]
    assert "Content-Disposition" not in as_accept_says.headers


@pytest.mark.parametrize(
    ("content_type", "accepts"),
    [
        ("application/json", ["", "*/*", "text/html, */*;q=0.8", "application/json, text/csv", "text/csv;q=0"]),
        ("application/json", ["application/json, text/csv;q=0.5", "text/csv-schema", "text/csv;q=0.1, */*;q=0.2"]),
        ("text/csv", ["text/csv", "text/*", "text/csv, */*;q=0.1", "TEXT/CSV; header=present"]),
        ("text/csv", ["application/json;q=0.1, text/csv; header=present; q=0.2", ", ;q=1,,text/csv;;q"]),
    ],
)
def test_accept_is_weighed(client, content_type, accepts):
    for accept in accepts:
        response = client.get("/courses", headers={"Accept": accept})
        assert (response.content_type, response.headers["Vary"]) == (content_type, "Accept"), accept
