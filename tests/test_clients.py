"""Clients that others generate from openapi.yaml: each is generated, compiled, and used against the running API."""

import os
import pathlib
import shutil
import subprocess

import pytest
from conftest import ROOT

DOCUMENT, CLIENTS = ROOT / "docs/openapi.yaml", ROOT / "tests/clients"
IMPORT_ALL = """
import importlib, pkgutil, course_api_client
for module in pkgutil.walk_packages(course_api_client.__path__, "course_api_client."):
    importlib.import_module(module.name)
"""
pytestmark = [pytest.mark.integration, pytest.mark.sqlite]


@pytest.fixture
def api(run, start):
    """The API with an editor and a reader, which allows two failed logins."""
    assert run("seed.py").returncode == 0
    assert run("seed.py", "user", "reader", "--read-only", stdin="reads-only\n").returncode == 0
    return start(LOGIN_LIMIT="2/minute")


def check(command, folder, **environment):
    """Run a command to its end in a folder; fail with what it says unless it succeeds."""
    options = {"cwd": folder, "env": os.environ | environment, "text": True, "timeout": 300}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    assert done.returncode == 0, done.stdout


def test_openapi_python_client(api, tmp_path):
    generator = shutil.which("openapi-python-client")
    if not generator:
        pytest.skip("make a virtual environment for tests/clients/requirements.txt, and add it to PATH")
    tools = pathlib.Path(generator).parent
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"  # with ruff, which formats what is generated
    shutil.copy(CLIENTS / "client.py", tmp_path)
    options = ["--path", DOCUMENT, "--output-path", "course_api_client", "--meta", "none"]
    check([generator, "generate", *options], tmp_path, PATH=path)
    check([tools / "python", "-W", "error", "-c", IMPORT_ALL], tmp_path)
    check([tools / "mypy", "--strict", "--follow-imports=silent", "client.py"], tmp_path)
    check([tools / "python", "client.py", api.url], tmp_path)


def test_openapi_typescript_with_openapi_fetch(api, tmp_path):
    modules = CLIENTS / "node_modules"
    if not (shutil.which("node") and modules.exists()):
        pytest.skip("install Node.js, then run: npm install --prefix tests/clients")
    shutil.copy(CLIENTS / "client.ts", tmp_path)
    shutil.copy(CLIENTS / "package.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    check([modules / ".bin/openapi-typescript", DOCUMENT, "--output", "course_api.ts"], tmp_path)
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--noUncheckedIndexedAccess"]
    check([modules / ".bin/tsc", *options, "client.ts"], tmp_path)
    check(["node", "client.js", api.url], tmp_path)
