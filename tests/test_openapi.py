"""openapi.yaml against the code, in both directions. The tests' client checks every other response."""

import re

import openapi_spec_validator
import pytest
import yaml
from catalogue import FIELDS, NEW
from description import DOCUMENT, PATHS, find, resolve
from fuzz import run_schemathesis

import course_api
import models

METHODS = ("get", "post", "put", "patch", "delete")
OPERATIONS = {(method, path): item[method] for path, item in PATHS.items() for method in METHODS if method in item}
ROUTES = {
    (route.method.lower(), re.sub(r"<(\w+)>", r"{\1}", route.rule)): route.config
    for route in course_api.app.routes
    if route.rule != "/courses/" and not route.rule.startswith("/docs/")  # an alias, and the files of the page
}


def test_it_is_openapi_3_1():
    openapi_spec_validator.validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert DOCUMENT["info"]["version"] == course_api.VERSION


def test_it_has_every_route_of_the_app_and_no_other():
    assert set(OPERATIONS) == set(ROUTES)


def test_courses_with_a_slash_is_only_an_alias():
    methods = {route.rule: [] for route in course_api.app.routes}
    for route in course_api.app.routes:
        methods[route.rule].append((route.method, route.callback))
    assert methods["/courses/"] == methods["/courses"]
    assert find("GET", "/courses/") == OPERATIONS["get", "/courses"]


def test_it_says_which_routes_are_public_and_has_every_parameter():
    for route, config in ROUTES.items():
        operation, protected = OPERATIONS[route], not config.get("public")
        assert (operation.get("security") == []) != protected
        assert ("401" in operation["responses"]) == protected
        assert ("403" in operation["responses"]) == (protected and route[0] != "get")
        described = {item["name"] for item in operation.get("parameters", ()) if item["in"] == "query"}
        assert described == {*config.get("parameters", ()), *config.get("columns", ())}


def test_it_names_the_limits_of_the_code():
    rules = {"username": models.User.username, "password": models.User.password} | models.FIELDS
    schemas, page = resolve(DOCUMENT["components"]["schemas"]), OPERATIONS["get", "/courses"]["parameters"]
    assert schemas["Course"]["properties"].keys() == {"id", *FIELDS}
    for field, schema in (schemas["Course"]["properties"] | schemas["Login"]["properties"]).items():
        if field == "id":
            continue
        if schema["type"] == "integer":
            good, bad = schema["maximum"], (schema["minimum"] - 1, schema["maximum"] + 1)
        else:
            good, bad = "a" * schema["maxLength"], ["a" * (schema["maxLength"] + 1)]
            assert (rules[field].minimum, rules[field].maximum) == (schema.get("minLength", 0), schema["maxLength"])
        assert rules[field].clean(good) == good
        for value in bad:
            with pytest.raises(models.ValidationError):
                rules[field].clean(value)
    assert DOCUMENT["components"]["schemas"]["NewCourses"]["maxItems"] == course_api.MAX_ROWS
    rows = DOCUMENT["components"]["schemas"]["UploadError"]["properties"]["rows"]
    assert rows["maxItems"] == course_api.MAX_ERRORS
    assert [item["schema"].get("maximum") for item in page if item["name"] == "limit"] == [1000]


def test_its_addresses_hold_below_a_prefix_and_the_login_is_the_first_way_to_authorize():
    """Swagger UI resolves both addresses relative to the document: test_docs.py tries it in a browser."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert DOCUMENT["servers"] == [{"url": "."}]
    assert schemes["login"]["flows"]["password"]["tokenUrl"] == "login"
    assert list(schemes) == ["login", "bearer", "query"]
    assert DOCUMENT["security"] == [{"login": []}, {"bearer": []}, {"query": []}]


def test_it_is_served_unchanged(stranger):
    assert yaml.safe_load(stranger.get("/openapi.yaml").body) == DOCUMENT


# -- Examples ----------------------------------------------------------------------------------------------------------


def examples(part):
    """Return the examples of a body, or of a response."""
    found = [item["value"] for item in part.get("examples", {}).values()]
    return [*found, part["example"]] if "example" in part else found


def without_ids(value):
    """Return a value of JSON with each id as 1, since they go on from test to test, and a text with plain line ends."""
    if isinstance(value, list):
        return [without_ids(item) for item in value]
    if isinstance(value, dict):
        return {name: 1 if name == "id" else without_ids(item) for name, item in value.items()}
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


@pytest.mark.parametrize("method_and_path", OPERATIONS, ids=" ".join)
def test_its_examples_are_true(client, method_and_path):
    """Each example of a body is good, and the response is the example of a response, if there is one."""
    method, path = method_and_path
    operation = OPERATIONS[method_and_path]
    path = path.replace("{code}", "CSE115")
    for content_type, body in operation.get("requestBody", {"content": {"": {}}})["content"].items():
        for example in examples(body) or ([] if "format" in body.get("schema", ()) else [""]):  # binary
            options = {"params": example, "content_type": content_type} if method not in ("get", "delete") else {}
            if content_type == "application/json":
                options["params"] = course_api.msgspec.json.encode(example)
            response = getattr(client, method)(path, **options)
            described = operation["responses"][str(response.status_int)].get("content", {})
            for value in examples(described.get(response.content_type, {})) if response.body else ():
                body = response.json if response.content_type == "application/json" else response.text
                assert without_ids(body) == without_ids(value)


def test_the_examples_of_the_parameters_find_something(client):
    for item in PATHS["/courses"]["get"]["parameters"]:
        for example in item["schema"].get("examples", ()):
            assert client.get("/courses", {item["name"]: example}).json["courses"]


def test_the_examples_of_errors_are_true(client, stranger, monkeypatch):
    def example(name, status, method="post", path="/courses"):
        described = OPERATIONS[method, path]["responses"][status]["content"]["application/json"]
        return described["examples"][name]["value"] if name else described["example"]

    new = {"name": "Data structures", "instructor": ""}
    rows = [new | {"code": "A"}, new | {"code": "B"}, new | {"code": "C", "name": ""}]
    assert client.post_json("/courses", {}, status=400).json == example("one", "400")
    assert client.post_json("/courses", rows, status=400).json == example("many", "400")
    assert client.post_json("/courses", new | {"code": "CSE115"}, status=409).json == example("", "409")
    assert client.get("/courses/A", status=404).json == example("", "404", "get", "/courses/{code}")
    login = {"username": "faisal", "password": "wrong"}
    assert stranger.post_json("/login", login, status=400).json == example("", "400", path="/login")
    expired = course_api.unauthorized(course_api.REASONS[course_api.jwt.ExpiredSignatureError])
    assert expired.body == example("", "401")
    models.User.update(read_only=True).execute()
    forbidden = client.post_json("/courses", NEW, status=403).json
    models.User.update(read_only=False).execute()
    assert forbidden == example("", "403")


@pytest.mark.integration
def test_schemathesis_finds_nothing(serve, tmp_path):
    """Runs every check of schemathesis, with all that it makes up of openapi.yaml, against a real server."""
    api, _ = serve(TOKEN_SECONDS="1000", LOGIN_LIMIT="10000/minute")
    cases, faults = run_schemathesis(api, tmp_path, "--max-examples", "40", "--generation-deterministic")
    assert not faults, "\n".join(faults)  # whole, which pytest would cut
    assert cases > 500
