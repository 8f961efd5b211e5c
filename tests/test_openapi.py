"""openapi.yaml against the code, in both directions. Every other test holds the answers it sees to it (conftest.py)."""

import os
import re
import subprocess
import sys

import openapi_spec_validator
import pytest
import yaml
from conftest import ROOT
from description import DOCUMENT, PATHS

import course_api
import models

METHODS = ("get", "post", "put", "patch", "delete")
OPERATIONS = {(method, path): item[method] for path, item in PATHS.items() for method in METHODS if method in item}


def test_it_is_openapi_3_1():
    openapi_spec_validator.validate(DOCUMENT)


def test_it_has_every_route_of_the_app_and_no_other():
    routes = {(route.method.lower(), re.sub(r"<(\w+)[^>]*>", r"{\1}", route.rule)) for route in course_api.app.routes}
    assert set(OPERATIONS) == routes


def test_it_says_which_routes_are_public():
    for route in course_api.app.routes:
        operation = OPERATIONS[route.method.lower(), re.sub(r"<(\w+)[^>]*>", r"{\1}", route.rule)]
        assert (operation.get("security") == []) == route.config.get("public", False)
        assert ("401" in operation["responses"]) != route.config.get("public", False)


def test_it_has_every_parameter_of_the_list():
    described = {item["name"] for item in PATHS["/courses"]["get"]["parameters"] if item["in"] == "query"}
    assert described | {"token"} == set(course_api.ListParameters.__struct_fields__)


def test_it_is_served_as_it_is(stranger):
    assert yaml.safe_load(stranger.get("/openapi.yaml").body) == DOCUMENT


def examples(part):
    """Return the examples of a body, or of an answer."""
    found = [item["value"] for item in part.get("examples", {}).values()]
    return [*found, part["example"]] if "example" in part else found


@pytest.mark.parametrize("method_and_path", OPERATIONS, ids=" ".join)
def test_its_examples_are_true(client, method_and_path):
    """Each example of a body is good, and what it answers, if that has an example too, is that one."""
    method, path = method_and_path
    operation = OPERATIONS[method_and_path]
    for item in [*PATHS[path].get("parameters", ()), *operation.get("parameters", ())]:
        if item["in"] == "path":
            path = path.replace(f"{{{item['name']}}}", item["example"])
    for content_type, body in operation.get("requestBody", {"content": {"": {}}})["content"].items():
        for example in examples(body) or [""]:
            send = {"params": example, "content_type": content_type} if isinstance(example, str) else {}
            if content_type == "application/json":
                send = {"params": course_api.msgspec.json.encode(example), "content_type": content_type}
            elif content_type == "application/x-www-form-urlencoded":
                send = {"params": example}
            if method in ("get", "delete"):
                send = {}
            answer = getattr(client, method)(path, **send)
            promised = operation["responses"][str(answer.status_int)].get("content", {}).get(answer.content_type, {})
            for value in examples(promised) if answer.body else ():
                assert without_ids(answer.json if answer.content_type == "application/json" else answer.text) == (
                    without_ids(value)
                )


def without_ids(value):
    """Return a value of JSON with each id as 1, for they go on from test to test, and a text with plain line ends."""
    if isinstance(value, list):
        return [without_ids(item) for item in value]
    if isinstance(value, dict):
        return {name: 1 if name == "id" else without_ids(item) for name, item in value.items()}
    return value.replace("\r\n", "\n") if isinstance(value, str) else value


@pytest.mark.parametrize("name", ["q", "instructor", "sort", "limit", "offset"])
def test_the_examples_of_the_parameters_find_something(client, name):
    (item,) = [item for item in PATHS["/courses"]["get"]["parameters"] if item["name"] == name]
    assert client.get("/courses", {name: item["schema"]["examples"][0]}).json["courses"]


def test_the_examples_of_errors_are_what_is_answered(client):
    promised = OPERATIONS["post", "/courses"]["responses"]["400"]["content"]["application/json"]["examples"]
    new = {"name": "Data structures", "instructor": "Ada"}
    assert client.post_json("/courses", {}, status=400).json == promised["one"]["value"]
    rows = [new | {"code": "A"}, new | {"code": "B"}, new | {"code": "C", "instructor": ""}]
    assert client.post_json("/courses", rows, status=400).json == promised["many"]["value"]


def test_schemathesis_finds_nothing(start, run, tmp_path):
    """Runs every check of schemathesis, with all that it makes up of openapi.yaml, against a real server."""
    run("seed.py")
    api = start(TOKEN_SECONDS="1000", LOGIN_LIMIT="10000/minute")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", ROOT / "tests/schemathesis.toml", "run"]
    command += [f"{api.url}/openapi.yaml", "--checks", "all", "--max-examples", "40", "--generation-deterministic"]
    environment = os.environ | {"TOKEN": api.log_in(), "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = int(re.search(r"(\d+) generated", done.stdout)[1])
    assert f"{cases} generated, {cases} passed" in done.stdout
    assert cases > 500


def test_the_document_names_the_limits_of_the_code():
    schemas = DOCUMENT["components"]["schemas"]
    assert schemas["Code"]["maxLength"] == models.Code.limit
    assert schemas["Text"]["maxLength"] == models.Name.limit == models.Instructor.limit == course_api.Q.limit
    assert schemas["Login"]["properties"]["username"]["maxLength"] == models.Username.limit
    assert schemas["Login"]["properties"]["password"]["maxLength"] == models.Password.limit
