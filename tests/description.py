"""openapi.yaml, and whether an answer is what it describes."""

import json
import pathlib
import re

import jsonschema
import yaml

DOCUMENT = yaml.safe_load((pathlib.Path(__file__).parent.parent / "docs/openapi.yaml").read_text())


def resolve(part):
    """Return a part of the document with what its references point to in their place."""
    if isinstance(part, list):
        return [resolve(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        found = DOCUMENT
        for name in part["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        return resolve(found | {name: value for name, value in part.items() if name != "$ref"})
    return {name: resolve(item) for name, item in part.items()}


PATHS = resolve(DOCUMENT["paths"])
ERROR = resolve(DOCUMENT["components"]["schemas"]["Error"])


def find(method, path):
    """Return the operation that describes a request, None where there is none."""
    for template in sorted(PATHS, key=lambda template: "{" in template):
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path, re.DOTALL):
            return PATHS[template].get({"HEAD": "get"}.get(method, method.lower()))
    return None


def hold(value, schema):
    jsonschema.Draft202012Validator(schema).validate(value)


def check(method, path, status, headers, body):
    """Hold an answer to its description: its status, its headers, the type and the schema of its body."""
    operation = find(method, path)
    if operation is None or status in (405, 431, 500):  # of any request
        assert status in (404, 405, 431, 500) or (method, status) == ("OPTIONS", 204) or "\ufffd" in path
        operation = {"responses": {str(status): {"content": {"application/json": {"schema": ERROR}}}}}
    seen = f"{method} {path}: {status}"
    assert str(status) in operation["responses"], f"{seen} is not described"
    described = operation["responses"][str(status)]
    for name, header in described.get("headers", {}).items():
        value = headers.get(name)
        assert value is not None or not header.get("required"), f"{seen} without {name}"
        if value is not None:
            whole = header["schema"].get("type") == "integer"
            hold(int(value) if whole else value, header["schema"])
    content_type = headers.get("Content-Type", "").partition(";")[0]
    if method == "HEAD" or status in (204, 302, 304):
        assert not body
    else:
        assert content_type in described["content"], f"{seen} as {content_type}"
        text = body.decode()
        value = json.loads(text) if content_type == "application/json" else text
        hold(value, described["content"][content_type]["schema"])
