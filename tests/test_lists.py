"""Part C of the contract: lists that are searched, sorted and cut into pages, as JSON and as CSV."""

import csv
import io
import random
import re
import urllib.parse

import pytest
from conftest import Client

import course_api
import models

COURSES = [  # code, name, instructor, in the order they are added
    ("MATH&151", "Calculus 100%", "Noether, Emmy"),
    ("6.006", "Introduction to Algorithms", "Liskov, Barbara"),
    ("AAS 100", "Intro_Asian American Studies", "Geng, Zhe"),
    ("ÉCO 1", "Économie, sous-titre *[x]?", "Ørsted, Ñandú"),
    ("aas 200", "algorithms at night", "Geng, Zhe"),
]


@pytest.fixture
def catalogue(client):
    models.Course.delete().execute()
    models.Course.add_courses({"code": code, "name": name, "instructor": who} for code, name, who in COURSES)
    return client


def codes(client, query):
    return [course["code"] for course in client.get(f"/courses?{query}").json["courses"]]


def links(answer):
    return {name: url for url, name in re.findall(r'<([^>]*)>; rel="(\w+)"', answer.headers["Link"])}


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("algorithms", ["6.006", "aas 200"]),
        ("ALGORITHMS", ["6.006", "aas 200"]),
        ("aas", ["AAS 100", "aas 200"]),
        ("noether, e", ["MATH&151"]),
        (" Geng ", ["AAS 100", "aas 200"]),
        ("%", ["MATH&151"]),
        ("_", ["AAS 100"]),
        ("*", ["ÉCO 1"]),
        ("[X]", ["ÉCO 1"]),
        ("?", ["ÉCO 1"]),
        ("&", ["MATH&151"]),
        ("é", ["ÉCO 1"]),
        ("ÑANDÚ", ["ÉCO 1"]),
        ("ÉCONOMIE, SOUS-TITRE *[X]?", ["ÉCO 1"]),
        ("é?", []),
        ("é^", []),
        ("!", []),
        ("\\", []),
        ("nothing", []),
        ("Calculus Noether", []),
    ],
)
def test_q_finds_a_part_of_any_field_in_any_case(catalogue, q, found):
    assert codes(catalogue, urllib.parse.urlencode({"q": q})) == found
    assert catalogue.get("/courses", {"q": q.encode()}).headers["X-Total-Count"] == str(len(found))


def test_instructor_is_the_whole_name(catalogue):
    assert codes(catalogue, "instructor=Geng,+Zhe") == ["AAS 100", "aas 200"]
    assert codes(catalogue, "instructor=Geng") == []


def test_filters_are_combined(catalogue):
    assert codes(catalogue, "instructor=Geng,+Zhe&q=night") == ["aas 200"]


@pytest.mark.parametrize("field", ["id", "code", "name", "instructor"])
def test_sort_is_by_a_field_and_then_by_id(catalogue, field):
    everything = catalogue.get("/courses").json["courses"]
    ascending = sorted(everything, key=lambda course: (course[field], course["id"]))
    assert catalogue.get(f"/courses?sort={field}").json["courses"] == ascending
    assert catalogue.get(f"/courses?sort=-{field}").json["courses"] == ascending[::-1]


def test_limit_and_offset_cut_a_page(catalogue):
    assert codes(catalogue, "limit=2") == ["MATH&151", "6.006"]
    assert codes(catalogue, "limit=2&offset=3") == ["ÉCO 1", "aas 200"]
    assert codes(catalogue, "limit=2&offset=5") == []
    assert codes(catalogue, "offset=3") == ["ÉCO 1", "aas 200"]
    assert codes(catalogue, "limit=1&offset=1&q=algo&sort=-code") == ["6.006"]


@pytest.mark.parametrize(
    ("query", "total"),
    [("", 5), ("?limit=1", 5), ("?offset=4", 5), ("?q=algo", 2), ("?q=algo&limit=1", 2), ("?q=algo&offset=2", 2)],
)
def test_the_total_counts_all_pages(catalogue, query, total):
    assert catalogue.get(f"/courses{query}").headers["X-Total-Count"] == str(total)


def test_an_empty_catalogue_has_an_empty_page(client):
    models.Course.delete().execute()
    answer = client.get("/courses?limit=10")
    assert (answer.json, answer.headers["X-Total-Count"]) == ({"courses": []}, "0")
    assert set(links(answer)) == {"first", "last"}


@pytest.mark.parametrize(
    "query",
    [
        "page=2",
        "Limit=2",
        "limit=",
        "limit=0",
        "limit=1001",
        "limit=-1",
        "limit=ten",
        "limit=1.5",
        "limit=null",
        "limit=1&limit=2",
        "limit=99999999999999999999999",
        "offset=-1",
        "offset=x",
        "offset=99999999999999999999999",
        "sort=",
        "sort=price",
        "sort=--id",
        "sort=id,name",
        "sort=ID",
        "q=",
        "q=%20",
        "q=a%00b",
        "q=" + "a" * 121,
        "instructor=",
        "after=",
        "after=5",
        "after=x:5",
        "after=-1:5",
        "after=%D9%A3:5",
        "after=9999999999999999999:5",
    ],
)
def test_an_unknown_parameter_or_a_bad_value_is_refused_with_what_is_allowed(catalogue, query):
    error = catalogue.get(f"/courses?{query}", status=400).json["error"]
    for name in course_api.ListParameters.__struct_fields__:
        assert name in error


def test_a_query_that_is_not_utf8_is_refused(catalogue):
    catalogue.get("/courses?q=%FF", status=400)


def test_the_links_lead_from_page_to_page_and_keep_the_other_parameters(catalogue):
    first = catalogue.get("/courses?limit=2&sort=code&q=al")
    assert set(links(first)) == {"first", "last", "next"}
    second = catalogue.get(links(first)["next"])
    assert set(links(second)) == {"first", "prev", "last"}
    assert [course["code"] for course in first.json["courses"]] == ["6.006", "MATH&151"]
    assert [course["code"] for course in second.json["courses"]] == ["aas 200"]
    assert catalogue.get(links(second)["prev"]).json == first.json
    assert catalogue.get(links(second)["first"]).json == first.json
    assert catalogue.get(links(first)["last"]).json == second.json


def test_a_page_beyond_the_end_leads_back_to_the_last_one(catalogue):
    answer = catalogue.get("/courses?limit=2&offset=100")
    assert links(answer)["prev"] == links(answer)["last"] == "/courses?limit=2&offset=4"


def test_a_list_without_a_limit_has_no_links(catalogue):
    assert "Link" not in catalogue.get("/courses?sort=name").headers


def test_a_link_keeps_the_token_of_the_query(stranger):
    answer = stranger.get(f"/courses?limit=1&token={course_api.make_token('faisal')}")
    stranger.get(links(answer)["next"], status=200)


@pytest.mark.parametrize("sort", ["id", "-id", "code", "-name", "instructor"])
def test_a_walk_has_each_course_once_while_others_come_and_go(app, client, sort):
    models.Course.delete().execute()
    dice = random.Random(5)
    stay = {f"S{number}" for number in range(300)}
    go = [f"G{number}" for number in range(300)]
    rows = [{"code": code, "name": f"N{dice.randrange(50)}", "instructor": "I"} for code in [*stay, *go]]
    models.Course.add_courses(dice.sample(rows, len(rows)))
    writer, seen, path = Client(app), [], f"/courses?limit=25&sort={sort}"
    writer.authorization = client.authorization
    while path:
        answer = client.get(path)
        seen += [course["code"] for course in answer.json["courses"]]
        path = links(answer).get("next")
        for number in range(min(10, len(go))):
            writer.delete(f"/courses/{go.pop()}", status=204)
            writer.post_json("/courses", {"code": f"{len(go)}-{number}", "name": f"N{number}", "instructor": "I"})
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)


# -- CSV ---------------------------------------------------------------------------------------------------------------


def get_csv(client, path="/courses"):
    answer = client.get(path, headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8; header=present"
    return list(csv.reader(io.StringIO(answer.text, newline="")))


def test_the_list_is_csv_where_accept_asks_for_it(catalogue):
    assert get_csv(catalogue) == [["code", "name", "instructor"], *map(list, COURSES)]


def test_a_page_of_csv_has_the_same_courses_and_headers_as_one_of_json(catalogue):
    path = "/courses?q=algo&limit=1"
    assert [row[0] for row in get_csv(catalogue, path)[1:]] == codes(catalogue, "q=algo&limit=1")
    answers = [catalogue.get(path, headers={"Accept": kind}).headers for kind in ("text/csv", "application/json")]
    assert [answers[0][name] for name in ("Link", "X-Total-Count")] == [
        answers[1][name] for name in ("Link", "X-Total-Count")
    ]
    assert answers[0]["ETag"] != answers[1]["ETag"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", "application/json"),
        ("text/html, */*;q=0.8", "application/json"),
        ("application/json", "application/json"),
        ("application/json, text/csv;q=0.5", "application/json"),
        ("text/csv;q=0", "application/json"),
        ("text/csv-schema", "application/json"),
        ("text/csv;q=bad", "text/csv"),
        ("text/csv", "text/csv"),
        ("TEXT/CSV; header=present", "text/csv"),
        ("text/csv, application/json;q=0.9", "text/csv"),
        ("application/json;q=0.1, text/csv; header=present; q=0.2", "text/csv"),
        (", ;q=1,,text/csv;;q", "text/csv"),
    ],
)
def test_accept_is_weighed(catalogue, accept, content_type):
    answer = catalogue.get("/courses", headers={"Accept": accept})
    assert (answer.content_type, answer.headers["Vary"]) == (content_type, "Accept")
