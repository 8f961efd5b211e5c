"""The Postman collection has a request for every route, and newman runs it without a failure."""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT

import course_api

COLLECTION = ROOT / "docs/postman_collection.json"


def test_the_collection_has_a_request_for_every_route():
    routes = set()
    for folder in json.loads(COLLECTION.read_text())["item"]:
        for request in (item["request"] for item in folder["item"]):
            path = request["url"].removeprefix("{{baseUrl}}").partition("?")[0]
            if request["method"] not in ("HEAD", "OPTIONS"):  # of no route: Bottle answers them from the others
                route, _ = course_api.app.match({"REQUEST_METHOD": request["method"], "PATH_INFO": path})
                routes.add((route.method, route.rule))
    assert routes == {(route.method, route.rule) for route in course_api.app.routes}


def test_newman_runs_the_collection_twice_without_a_failure(run, start):
    newman = shutil.which("newman")
    if not newman:
        pytest.skip("needs newman: npm install --global newman")
    assert run("seed.py").returncode == 0
    command = [newman, "run", COLLECTION, "--env-var", f"baseUrl={start().url}", "--color", "off"]
    for _ in range(2):  # it deletes what it adds
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
