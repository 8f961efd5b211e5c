"""Clients against the running API: two that are generated from openapi.yaml, and those that docs/clients.md shows."""

import http.server
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
from browser import open_browser
from processes import ROOT

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


# -- docs/clients.md ---------------------------------------------------------------------------------------------------


def code(language):
    """Return the blocks of docs/clients.md in a language, to be used against another address."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/clients.md").read_text(), re.DOTALL)


class Site(http.server.BaseHTTPRequestHandler):
    """An empty web page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!DOCTYPE html><link rel=icon href=data:,>")

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    """The origin of a web page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def browser():
    browser = open_browser()
    yield browser
    browser.quit()


def logins(api):
    """Return how many logins the API has logged."""
    api.settle()
    return sum("POST /token 200" in line or "POST /login 200" in line for line in api.output)


def test_a_page_of_another_origin(run, start, site, browser):
    assert run("seed.py").returncode == 0
    api = start(CORS_ORIGINS=site, TOKEN_SECONDS="5", LOGIN_LIMIT="2/minute")
    functions, example = code("js")
    functions = functions.replace("http://127.0.0.1:5000", api.url)
    browser.get(site)

    def evaluate(script):
        """Run a script in the page; return what it returns, or its error with status and message."""
        ends = "const done = arguments[arguments.length - 1]"
        error = "{status: error.status, retryAfter: error.retryAfter, message: error.message}"
        return browser.execute_async_script(f"{ends}; (async () => {{{script}}})().then(done, error => done({error}))")

    insert = (
        "const element = document.createElement('script'); element.text = arguments[0]; document.head.append(element)"
    )
    browser.execute_script(insert, functions)
    lines = "const lines = []; const console = {log: (...words) => lines.push(words.join(' '))};"
    assert evaluate(f"{lines} {example}; return [Boolean(added), changed.name, lines]") == [
        True,
        "Introduction to Algorithms",
        [
            "6.006 Introduction to Algorithms",
            "CSE115 Introduction to programming language",
            "CSE465 Introduction to neural network",
        ],
    ]
    assert evaluate(f"{lines} {example}; return added === undefined")  # 409
    pages = "const codes = []; for await (const {code} of listCourses({limit: 1, prefix: 'CSE'})) codes.push(code)"
    assert evaluate(f"{pages}; return codes") == ["CSE115", "CSE465"]
    # Somebody else changes the course while it is edited, once.
    other = "changeCourse('CSE115', () => ({instructor: 'Grace Hopper'}))"
    edit = "course => { seen.push(course.instructor); return {name: `${course.name}s`} }"
    race = f"""
        const seen = [], send = window.send
        window.send = (path, options) => options.method === 'PATCH' && seen.length === 1
            ? (window.send = send, {other}.then(() => send(path, options)))
            : send(path, options)
        const changed = await changeCourse('CSE115', {edit})
        return [seen, changed]
    """
    seen, changed = evaluate(race)
    assert seen == ["John stuart", "Grace Hopper"]
    assert (changed["name"], changed["instructor"]) == ("Introduction to programming languages", "Grace Hopper")
    # It stays logged in: in time, and after a 401.
    before = logins(api)
    time.sleep(4.6)  # the token is good for 0.4 s more
    assert evaluate(f"{pages}; return codes") == ["CSE115", "CSE465"]
    assert evaluate(f"session.token = 'not.a.token'; {pages}; return codes") == ["CSE115", "CSE465"]
    assert logins(api) == before + 2
    assert any("GET /courses 401" in line for line in api.output)
    failed = "await logIn({username: 'faisal', password: 'wrong'})"
    assert evaluate(failed) == {
        "status": 400,
        "retryAfter": None,
        "message": "username or password is not correct",
    }
    assert evaluate(failed)["status"] == 400
    refused = evaluate(failed)
    assert refused["status"] == 429 and int(refused["retryAfter"]) > 0


def test_a_script_in_python(run, start, tmp_path):
    assert run("seed.py").returncode == 0
    api = start(TOKEN_SECONDS="2", LOGIN_LIMIT="1/2seconds")
    (text,) = code("python")
    script = text.replace("http://127.0.0.1:5000", api.url) + """
assert api.get("courses").status_code == 200
time.sleep(2)
assert api.get("courses").status_code == 200  # renewed in time
api.token = "not.a.token"
assert api.get("courses").status_code == 200  # renewed on a 401
page, pages = {"url": "courses?limit=1"}, 0
while page:
    page, pages = api.get(page["url"]).links.get("next"), pages + 1
assert pages == 3
assert requests.post(f"{api.url}token", json={**api.login, "password": "wrong"}).status_code == 400
assert requests.post(f"{api.url}token", json=api.login).status_code == 429
api.log_in()  # waits
"""  # fmt: skip
    command = [sys.executable, "-c", script]
    for said in ("CSE115\nCSE465\n6.006\n", "6.006 is taken\nCSE115\nCSE465\n6.006\n"):
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
        assert (done.stdout, done.stderr) == (said, "")
        time.sleep(2)
    assert "Introduction to Introduction to Algorithms" in api.request("/courses/6.006", **api.bearer())[1]


def test_a_script_with_curl(run, start, tmp_path):
    assert run("seed.py").returncode == 0
    api = start(TOKEN_SECONDS="200", LOGIN_LIMIT="1/2seconds")
    (tmp_path / "login.json").write_text('{"username": "faisal", "password": "faisal"}')
    (text,) = code("bash")
    text = text.replace("http://127.0.0.1:5000", api.url).replace("limit=100", "limit=2")
    wrong = """-H "$json" -d '{"username": "faisal", "password": "wrong"}'"""
    script = f"""
set -eu
{text}
echo
token=not.a.token
request /courses/CSE115
echo $status
curl -sS $api/token {wrong}
log_in
request /courses/CSE115 -X DELETE -H "If-Match: $etag"
cat body
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["curl: (22) The requested URL returned error: 429"]  # and then it has waited
    first, status, last = done.stdout.splitlines()
    assert first.count('"courses"') == 2 and "Introduction to Algorithms" in first
    assert status == "200"
    assert last.startswith('{"error":"username or password is not correct"}{"error":"the course has changed')
    again = subprocess.run(["bash", "-c", text], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert again.stdout.startswith("6.006 is taken\n")
