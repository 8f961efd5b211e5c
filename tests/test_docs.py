"""The page at /docs in a real browser, as a person uses it, and the Postman collection as newman runs it."""

import contextlib
import json
import shutil
import subprocess
import time

import pytest
from browser import open_browser, problems
from catalogue import FIELDS
from processes import ROOT
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait
from servers import nginx

import course_api
import models

COLLECTION = ROOT / "docs/postman_collection.json"
DIALOG = "//*[@role='dialog']"


class Page:
    """The docs page in Chromium."""

    def __init__(self, **options):
        self.browser = open_browser(**options)
        self.wait = WebDriverWait(self.browser, 20)

    def find(self, path):
        return self.wait.until(lambda _: self.browser.find_element(By.XPATH, path))

    def is_absent(self, path):
        return self.wait.until(lambda _: not self.browser.find_elements(By.XPATH, path))

    def in_view(self, path):
        """Return an element once the window shows all of it without scrolling."""
        script = (
            "const box = arguments[0].getBoundingClientRect();"
            "return box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth"
        )
        self.wait.until(lambda _: self.browser.execute_script(script, self.find(path)))
        return self.find(path)

    def click(self, path):
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(path))
        self.wait.until(lambda _: self.find(path).is_enabled() and self.find(path).is_displayed())
        self.find(path).click()

    def fill_in(self, username, password):
        """Fill in the login, which is open and has the focus, and press Enter."""
        assert self.in_view(f"{DIALOG}//button[text()='Log in']")
        name = self.in_view(f"{DIALOG}//input[@name='username']")
        self.wait.until(lambda browser: browser.switch_to.active_element == name)
        name.send_keys(username)
        self.in_view(f"{DIALOG}//input[@name='password']").send_keys(password, Keys.ENTER)

    def log_in(self, username, password):
        self.click("//button[contains(@class, 'authorize')]")
        self.fill_in(username, password)
        assert self.is_absent(DIALOG)

    def open(self, operation):
        """Open an operation of the courses to try it; return the path of its element."""
        block = f"//*[@id='operations-courses-{operation}']"
        self.click(f"{block}//button[contains(@class, 'opblock-summary-control')]")
        self.click(f"{block}//button[contains(@class, 'try-out__btn')]")
        return block

    def execute(self, block):
        """Execute an operation that is open; return the status and the body that the page shows."""
        self.click(f"{block}//button[contains(@class, 'execute')]")
        shown = f"{block}//*[contains(@class, 'live-responses-table')]//tr[@class='response']"
        status = self.find(f"{shown}//*[contains(@class, 'response-col_status')]").text.split()[0]
        return status, self.find(f"{shown}//*[contains(@class, 'response-col_description')]").text

    def try_out(self, operation, **choices):
        block = self.open(operation)
        for name, value in choices.items():
            Select(self.find(f"{block}//tr[@data-param-name='{name}']//select")).select_by_value(value)
        return self.execute(block)


@pytest.fixture
def open_page():
    """A function that opens a page of the docs in a browser of some width and scheme."""
    with contextlib.ExitStack() as pages:

        def open_page(url, **options):
            page = Page(**options)
            pages.callback(page.browser.quit)
            page.browser.get(url)
            return page

        yield open_page


@pytest.mark.integration
@pytest.mark.sqlite
@pytest.mark.parametrize("way", ["no prefix", "prefix kept", "prefix stripped"])
def test_a_person_can_log_in_on_the_page_and_try_the_api(run, start, tmp_path, open_page, way):
    run("seed.py")
    api = start(URL_PREFIX="" if way == "no prefix" else "/catalogue")
    with contextlib.ExitStack() as stack:
        url = api.url
        if way != "no prefix":
            upstream = "http://api/" if way == "prefix stripped" else "http://api"
            port = int(url.removesuffix("/catalogue").rpartition(":")[2])
            url = stack.enter_context(nginx(tmp_path, [port], location="/catalogue/", upstream=upstream)) + "/catalogue"
        page = open_page(f"{url}/")
        assert page.browser.current_url == f"{url}/docs"
        page.log_in("faisal", "faisal")
        status, courses = page.try_out("listCourses")
        assert status == "200"
        assert all(text in courses for text in ("CSE115", "John stuart", "CSE465", "Andrew Ng"))
        status, counts = page.try_out("addCourses", update="true")
        assert status == "200" and '"created"' in counts and '"updated"' in counts
        assert problems(page.browser) == []
        events = [json.loads(line["message"])["message"] for line in page.browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert f"{url}/openapi.yaml" in asked and f"{url}/token" in asked
        assert [other for other in asked if not other.startswith((f"{url}/", "data:"))] == []  # nothing from elsewhere


@pytest.mark.integration
@pytest.mark.sqlite
def test_the_page_shows_a_reader_why_a_write_is_refused(run, start, open_page):
    run("seed.py", "user", "reader", "--read-only", stdin="reads-only\n")
    page = open_page(f"{start().url}/docs")
    page.log_in("reader", "reads-only")
    status, error = page.try_out("addCourses")
    assert status == "403" and "reader may only read" in error


@pytest.mark.integration
@pytest.mark.sqlite
@pytest.mark.parametrize("width", [1280, 390])
def test_the_login_is_short_and_says_what_went_wrong(run, start, open_page, width):
    run("seed.py")
    page = open_page(f"{start().url}/docs", width=width)
    page.click("//button[contains(@class, 'authorize')]")
    page.fill_in("faisal", "wrong")
    assert page.in_view(f"{DIALOG}//*[@role='alert']").text == "username or password is not correct"
    assert page.in_view(f"{DIALOG}//button[text()='Log in']")
    text = page.find(DIALOG).text.lower()
    assert "client" not in text and "scope" not in text
    assert len(page.browser.find_elements(By.XPATH, f"{DIALOG}//input")) == 2
    page.find(f"{DIALOG}//input[@name='password']").send_keys(Keys.CONTROL, "a")
    page.find(f"{DIALOG}//input[@name='password']").send_keys("faisal", Keys.ENTER)
    assert page.is_absent(DIALOG)
    page.click("//button[contains(@class, 'authorize')]")
    assert "Logged in as faisal" in page.find(DIALOG).text
    page.find(f"{DIALOG}//button[text()='Log out']").click()
    assert page.in_view(f"{DIALOG}//button[text()='Log in']")
    page.find("//body").send_keys(Keys.ESCAPE)
    assert page.is_absent(DIALOG)


@pytest.mark.integration
@pytest.mark.sqlite
def test_an_attempt_with_an_expired_token_leads_back_to_the_login(run, start, open_page):
    run("seed.py")
    page = open_page(f"{start(TOKEN_SECONDS='10').url}/docs")
    page.log_in("faisal", "faisal")
    expiry = time.monotonic() + 10.5
    block = page.open("listCourses")
    time.sleep(max(0, expiry - time.monotonic()))
    page.click(f"{block}//button[contains(@class, 'execute')]")
    assert page.in_view(f"{DIALOG}//*[@role='alert']").text == "the token has expired; log in again"
    page.fill_in("faisal", "faisal")
    assert page.is_absent(DIALOG)
    assert page.execute(block)[0] == "200"


@pytest.mark.integration
@pytest.mark.sqlite
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_and_follows_the_system(run, start, open_page, scheme):
    run("seed.py")
    page = open_page(f"{start().url}/docs", width=390, height=844, scheme=scheme)
    page.in_view("//button[contains(@class, 'authorize')]")
    for operation in ("listCourses", "addCourses"):
        page.open(operation)
    assert page.browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    background = page.browser.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    assert (background == "rgb(28, 32, 34)") == (scheme == "dark")
    assert page.browser.find_elements(By.CSS_SELECTOR, ".servers") == []
    assert problems(page.browser) == []


def test_the_page_lets_nothing_run_but_its_own_files(stranger):
    policy = stranger.get("/docs").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy and "sha" not in policy


@pytest.mark.parametrize("path", ["/docs", "/docs/docs.js", "/docs/swagger_bundle.js", "/openapi.yaml"])
def test_a_file_of_the_docs_is_not_sent_again_until_it_changes(stranger, path):
    etag = stranger.get(path).headers["ETag"]
    stranger.get(path, headers={"If-None-Match": etag}, status=304)
    stranger.get(path, headers={"If-None-Match": '"00000000000000000000000000000000"'}, status=200)


def test_the_root_leads_to_the_page(stranger):
    page = stranger.get("/", status=302).follow(status=200).text
    assert all(name in page for name in ("docs/docs.js", "docs/swagger_bundle.js", "docs/swagger_style.css"))


@pytest.mark.parametrize("name", ["__init__.py", "redoc.js", "swagger_bundle.js.map", "..%2f__init__.py"])
def test_no_other_file_is_given_out(stranger, name):
    stranger.get(f"/docs/{name}", status=404)


# -- The Postman collection --------------------------------------------------------------------------------------------


def test_the_collection_has_a_request_for_every_route():
    routes = set()
    for folder in json.loads(COLLECTION.read_text())["item"]:
        for request in (item["request"] for item in folder["item"]):
            path = request["url"].removeprefix("{{baseUrl}}").partition("?")[0]
            if request["method"] not in ("HEAD", "OPTIONS"):  # Bottle answers them from the other routes
                route, _ = course_api.app.match({"REQUEST_METHOD": request["method"], "PATH_INFO": path})
                routes.add((route.method, route.rule.rstrip("/")))
    expected = {(route.method, route.rule.rstrip("/")) for route in course_api.app.routes}
    assert routes >= {(method, rule) for method, rule in expected if not rule.startswith("/docs/")}
    assert routes <= expected


def test_the_collection_has_the_declared_fields():
    for folder in json.loads(COLLECTION.read_text())["item"]:
        for item in folder["item"]:
            headers = {header["key"]: header["value"] for header in item["request"].get("header", ())}
            body = item["request"].get("body", {}).get("raw", "")
            if headers.get("Content-Type") == "text/csv" and "?" not in item["request"]["url"]:  # with no other columns
                assert body.partition("\n")[0] == ",".join(FIELDS)
            elif headers.get("Content-Type") == "application/json" and "/courses" in item["request"]["url"] and body:
                courses = json.loads(body)
                courses = courses.get("courses", [courses]) if isinstance(courses, dict) else courses
                expected = [*FIELDS] if item["request"]["method"] == "POST" else models.CHANGEABLE
                assert all(set(course) <= set(expected) for course in courses)
                assert all(list(course) == expected for course in courses if item["request"]["method"] != "PATCH")
            script = json.dumps(item["event"])
            if "text\\\\/csv" in script and item["name"] == "Export CSV":
                assert ",".join(FIELDS) in script


@pytest.mark.integration
def test_newman_runs_the_collection_twice_without_a_failure(run, start):
    newman = shutil.which("newman")
    if not newman:
        pytest.skip("install newman: npm install --global newman")
    assert run("seed.py").returncode == 0
    command = [newman, "run", COLLECTION, "--env-var", f"baseUrl={start().url}", "--color", "off"]
    for _ in range(2):  # it deletes what it adds
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
