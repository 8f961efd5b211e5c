"""openapi.yaml against the code, in both directions. The tests' client checks every other response."""

import itertools
import re
import urllib.parse

import jsonschema
import openapi_spec_validator
import pytest
import yaml
from catalogue import FIELDS, NEW, REQUIRED, TEXTS
from description import DOCUMENT, PATHS, find, resolve
from fuzz import run_schemathesis

import course_api
import models

METHODS = ("get", "post", "put", "patch", "delete")
OPERATIONS = {(method, path): item[method] for path, item in PATHS.items() for method in METHODS if method in item}
PARAMETERS = {item["name"]: item["schema"] for item in OPERATIONS["get", "/courses"]["parameters"]}  # of the list
SCHEMAS = resolve(DOCUMENT["components"]["schemas"])
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
    assert SCHEMAS["Course"]["properties"].keys() == {"id", *FIELDS}
    for field, schema in (SCHEMAS["Course"]["properties"] | SCHEMAS["Login"]["properties"]).items():
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
    rows = DOCUMENT["components"]["schemas"]["BadRows"]
    assert rows["maxItems"] == course_api.MAX_ERRORS
    assert PARAMETERS["limit"]["maximum"] == 1000
    assert PARAMETERS["prefix"]["maxLength"] == 20


WHITE = [chr(number) for number in (*range(256), 0x1680, 0x180E, 0x2000, 0x200B, 0x2028, 0x3000)]  # or not, or control


@pytest.mark.parametrize(
    ("schema", "parse"),
    [
        ("Code", models.FIELDS["code"].clean),
        ("Text", models.FIELDS["name"].clean),
        ("OptionalText", models.FIELDS["instructor"].clean),
        ("prefix", course_api.parse_prefix),
    ],
)
def test_the_patterns_of_texts_and_the_code_agree_on_every_white_space_and_control_character(schema, parse):
    pattern = (PARAMETERS | SCHEMAS)[schema]["pattern"]
    for text in (form.format(char) for char in WHITE for form in ("a{}b", "{}ab", "ab{}", "{0}a{0}", "{0}.{0}")):
        try:
            parse(text)
        except ValueError:
            assert not re.fullmatch(pattern, text), ascii(text)
        else:
            assert re.fullmatch(pattern, text), ascii(text)


# -- Against the declared fields ---------------------------------------------------------------------------------------


def test_every_schema_of_a_course_has_the_declared_fields():
    course, new, replacement = (SCHEMAS[name] for name in ("Course", "NewCourse", "CourseReplacement"))
    assert list(course["properties"]) == ["id", *FIELDS] == course["required"]
    assert (list(new["properties"]), new["required"]) == ([*FIELDS], [*REQUIRED])
    assert (list(replacement["properties"]), replacement["required"]) == (models.CHANGEABLE, models.REQUIRED)
    assert list(SCHEMAS["CourseChange"]["properties"]) == models.CHANGEABLE
    for schema in (new, replacement, SCHEMAS["CourseChange"]):
        assert schema["properties"].items() <= course["properties"].items()


def test_a_change_has_at_least_one_field():
    change = jsonschema.Draft202012Validator(SCHEMAS["CourseChange"])
    good = {name: "text" if name in TEXTS else models.FIELDS[name].minimum for name in models.CHANGEABLE}
    for chosen in itertools.chain.from_iterable(itertools.combinations(good, n) for n in range(len(good) + 1)):
        assert change.is_valid({"id": 1} | {name: good[name] for name in chosen}) == bool(chosen)


def test_the_list_has_the_declared_fields():
    sortable = ["id", *FIELDS]
    assert PARAMETERS["sort"]["enum"] == [*sortable, *(f"-{field}" for field in sortable)]
    assert PARAMETERS["after"]["pattern"] == rf"^(-?({'|'.join(sortable)}):[0-9]{{1,18}}:[^\x00]*)?$"
    csv = OPERATIONS["get", "/courses"]["responses"]["200"]["content"]["text/csv"]["schema"]
    assert csv["pattern"] == rf"^{','.join(FIELDS)}\r\n"


def test_a_cursor_and_a_file_are_as_described(client):
    for sort in PARAMETERS["sort"]["enum"]:
        link = client.get("/courses", {"sort": sort, "limit": 1}).headers["Link"]
        (cursor,) = re.findall(r"after=([^&>]+)", link)
        assert re.search(PARAMETERS["after"]["pattern"], urllib.parse.unquote_plus(cursor))
    for name in PARAMETERS["format"]["enum"]:
        file = client.get("/courses", {"format": name}).headers["Content-Disposition"]
        assert file == f'attachment; filename="courses.{name}"'
    client.get("/courses", {"format": "pdf"}, status=400)


# -- For generators of clients -----------------------------------------------------------------------------------------


def walk(part, *path):
    """Yield every object of the document, with the keys that lead to it."""
    if isinstance(part, dict):
        yield path, part
    for key, item in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
        yield from walk(item, *path, key)


def test_generators_can_read_it():
    """Each of these has stopped a generator, or has made it write a client without types."""
    for path, part in walk(DOCUMENT):
        if path[-1:] == ("properties",):
            continue
        if "const" in part or "enum" in part or "pattern" in part:
            assert isinstance(part["type"], str), path
            assert isinstance(part.get("const", ""), str), path
            assert part.get("pattern", "^").startswith("^") or part["pattern"] == "Accept", (
                path
            )  # "/" begins another form
        if part.get("type") == "object":
            assert path[:2] == ("components", "schemas") and len(path) == 3, f"{path} has no name"
        assert "allOf" not in part, path
        assert "<<" not in part, path
    for (method, path), operation in OPERATIONS.items():
        content = operation.get("requestBody", {}).get("content", {"application/json": {}})
        assert next(iter(content)) == "application/json", (method, path)


def test_every_example_fits_its_schema():
    found = 0
    for path, part in walk(resolve(DOCUMENT)):
        schema = part.get("schema", part)
        values = examples(part) if "schema" in part else part.get("examples", ())
        if path[-1:] == ("properties",) or not {"schema", "type"} & set(part):
            continue
        for value in values:
            jsonschema.Draft202012Validator(schema).validate(value)
            found += 1
    assert found > 40


def test_its_addresses_hold_below_a_prefix_and_the_login_is_the_first_way_to_authorize():
    """Both addresses are relative to the document. With a scheme for ?token=, clients would send the token twice."""
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert DOCUMENT["servers"] == [{"url": "."}]
    assert schemes["login"]["flows"]["password"]["tokenUrl"] == "token"
    assert list(schemes) == ["login", "bearer"]
    assert DOCUMENT["security"] == [{"login": []}, {"bearer": []}]


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
            if content_type in ("application/json", "application/merge-patch+json"):
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
