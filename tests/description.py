"""openapi.yaml, whether a response is as it describes, and a client that checks that."""

import json
import pathlib
import re

import jsonschema
import webtest
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
    """Return the operation that describes a request, or None."""
    path = "/courses" if path == "/courses/" else path  # an alias, which is not listed
    for template in sorted(PATHS, key=lambda template: "{" in template):
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path, re.DOTALL):
            return PATHS[template].get({"HEAD": "get"}.get(method, method.lower()))
    return None


def validate(value, schema):
    jsonschema.Draft202012Validator(schema).validate(value)


def check(method, path, status, headers, body):
    """Check the status of a response, its headers, and the type and the schema of its body, by the description.

    A 500 is never as described. A test that provokes one sends its request with webtest.TestApp itself.
    """
    summary = f"{method} {path}: {status}"
    operation = find(method, path)
    if path.startswith("/docs/") and status in (200, 304):  # the page's files, which are not described
        return
    if operation is None or status in (405, 431):  # of any request
        is_invalid_path = status == 400 and re.search("[\0\ufffd]", path)
        assert status in (404, 405, 431) or (method, status) == ("OPTIONS", 204) or is_invalid_path, summary
        operation = {"responses": {str(status): {"content": {"application/json": {"schema": ERROR}}}}}
    assert str(status) in operation["responses"], f"{summary} is not described"
    described = operation["responses"][str(status)]
    for name, header in described.get("headers", {}).items():
        value = headers.get(name)
        assert value is not None or not header.get("required"), f"{summary} without {name}"
        if value is not None:
            is_number = header["schema"].get("type") == "integer"
            validate(int(value) if is_number else value, header["schema"])
    content_type = headers.get("Content-Type", "").partition(";")[0]
    if method == "HEAD" or status in (204, 302, 304):
        assert not body, summary
    else:
        assert content_type in described["content"], f"{summary} as {content_type}"
        text = body.decode("latin1" if "format" in described["content"][content_type]["schema"] else "utf-8")
        value = json.loads(text) if content_type == "application/json" else text
        validate(value, described["content"][content_type]["schema"])


def check_error(response, error, **members):
    """Check a whole error: its JSON, which has these members besides, and the headers that every response has."""
    assert response.status_int >= 400
    assert response.json == {"error": error} | members
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Cache-Control"] == "private, no-cache"


class Client(webtest.TestApp):
    """A client that checks every response against openapi.yaml."""

    def do_request(self, req, *args, **kwargs):
        path = req.environ["PATH_INFO"].encode("latin1").decode(errors="replace")
        response = super().do_request(req, *args, **kwargs)
        check(req.method, path, response.status_int, response.headers, response.body)
        return response
