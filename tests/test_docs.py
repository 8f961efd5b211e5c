"""The page at /docs in a real browser, as a person uses it, and the Postman collection as newman runs it."""

import contextlib
import json
import shutil
import subprocess

import pytest
from processes import ROOT
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait
from servers import nginx

import course_api

COLLECTION = ROOT / "docs/postman_collection.json"


class Page:
    """The docs page in Chromium."""

    def __init__(self):
        program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
        if not (program and driver):
            pytest.skip("install Chromium and its driver: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.wait = WebDriverWait(self.browser, 20)

    def find(self, path):
        return self.wait.until(lambda _: self.browser.find_element(By.XPATH, path))

    def click(self, path):
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(path))
        self.wait.until(lambda _: self.find(path).is_enabled() and self.find(path).is_displayed())
        self.find(path).click()

    def log_in(self, username, password):
        """Log in with the first form that Authorize shows, without scrolling to it."""
        self.click("//button[contains(@class, 'authorize')]")
        form = "(//*[contains(@class, 'auth-container')])[1]"
        name = self.find(f"{form}//input[@id='oauth_username']")
        is_visible = (
            "const box = arguments[0].getBoundingClientRect(); return box.top >= 0 && box.bottom <= innerHeight"
        )
        assert self.browser.execute_script(is_visible, name)
        name.send_keys(username)
        assert self.browser.switch_to.active_element == name
        self.find(f"{form}//input[@id='oauth_password']").send_keys(password)
        self.click(f"{form}//button[text()='Authorize']")
        self.find(f"{form}//button[text()='Logout']")
        self.click("//button[contains(@class, 'btn-done')]")

    def try_out(self, operation, **choices):
        """Execute an operation of the courses; return the status and the body that the page shows."""
        block = f"//*[@id='operations-courses-{operation}']"
        self.click(f"{block}//button[contains(@class, 'opblock-summary-control')]")
        self.click(f"{block}//button[contains(@class, 'try-out__btn')]")
        for name, value in choices.items():
            Select(self.find(f"{block}//tr[@data-param-name='{name}']//select")).select_by_value(value)
        self.click(f"{block}//button[contains(@class, 'execute')]")
        shown = f"{block}//*[contains(@class, 'live-responses-table')]//tr[@class='response']"
        status = self.find(f"{shown}//*[contains(@class, 'response-col_status')]").text.split()[0]
        return status, self.find(f"{shown}//*[contains(@class, 'response-col_description')]").text


@pytest.fixture
def page():
    page = Page()
    yield page
    page.browser.quit()


@pytest.mark.integration
@pytest.mark.sqlite
@pytest.mark.parametrize("way", ["no prefix", "prefix kept", "prefix stripped"])
def test_a_person_can_log_in_on_the_page_and_try_the_api(run, start, tmp_path, page, way):
    run("seed.py")
    api = start(URL_PREFIX="" if way == "no prefix" else "/catalogue")
    with contextlib.ExitStack() as stack:
        url = api.url
        if way != "no prefix":
            upstream = "http://api/" if way == "prefix stripped" else "http://api"
            port = int(url.removesuffix("/catalogue").rpartition(":")[2])
            url = stack.enter_context(nginx(tmp_path, [port], location="/catalogue/", upstream=upstream)) + "/catalogue"
        page.browser.get(f"{url}/")
        assert page.browser.current_url == f"{url}/docs"
        page.log_in("faisal", "faisal")
        status, courses = page.try_out("listCourses")
        assert status == "200"
        assert all(text in courses for text in ("CSE115", "John stuart", "CSE465", "Andrew Ng"))
        status, counts = page.try_out("addCourses", update="true")
        assert status == "200" and '"created"' in counts and '"updated"' in counts
        assert [line["message"] for line in page.browser.get_log("browser") if line["level"] != "DEBUG"] == []
        events = [json.loads(line["message"])["message"] for line in page.browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert f"{url}/openapi.yaml" in asked
        assert [other for other in asked if not other.startswith((f"{url}/", "data:"))] == []  # nothing from elsewhere


@pytest.mark.integration
@pytest.mark.sqlite
def test_the_page_shows_a_reader_why_a_write_is_refused(run, start, page):
    run("seed.py", "user", "reader", "--read-only", stdin="reads-only\n")
    page.browser.get(f"{start().url}/docs")
    page.log_in("reader", "reads-only")
    status, error = page.try_out("addCourses")
    assert status == "403" and "reader may only read" in error


def test_the_page_lets_nothing_run_but_its_own_files(stranger):
    policy = stranger.get("/docs").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_the_root_leads_to_the_page(stranger):
    assert "swagger_bundle.js" in stranger.get("/", status=302).follow(status=200).text


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
