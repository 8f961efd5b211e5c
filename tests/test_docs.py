"""The page at /docs, in a real browser, as a person uses it."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


@pytest.fixture
def browser():
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("needs Chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,1250"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def test_a_person_can_log_in_on_the_page_and_see_the_two_courses(run, start, browser):
    run("seed.py")
    api = start()
    wait = WebDriverWait(browser, 20)

    def find(path):
        return wait.until(lambda _: browser.find_element(By.XPATH, path))

    def click(path):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", find(path))
        wait.until(lambda _: find(path).is_enabled() and find(path).is_displayed())
        find(path).click()

    browser.get(api.url)
    assert browser.current_url == f"{api.url}/docs"
    click("//button[contains(@class, 'authorize')]")
    find("//*[contains(@class, 'auth-container')]//input[@id='oauth_username']").send_keys("faisal")
    find("//input[@id='oauth_password']").send_keys("faisal")
    click("//input[@id='oauth_password']/ancestor::*[contains(@class, 'auth-container')]//button[text()='Authorize']")
    find("//button[text()='Logout']")
    click("//button[contains(@class, 'btn-done')]")
    click("//*[@id='operations-courses-get_courses']//button[contains(@class, 'opblock-summary-control')]")
    click("//button[contains(@class, 'try-out__btn')]")
    click("//button[contains(@class, 'execute')]")
    answer = find("//*[contains(@class, 'live-responses-table')]//*[contains(@class, 'response-col_description')]//pre")
    wait.until(lambda _: "CSE465" in answer.text)
    for word in ("CSE115", "John stuart", "Andrew Ng"):
        assert word in answer.text
    assert [line["message"] for line in browser.get_log("browser") if line["level"] != "DEBUG"] == []
    events = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert f"{api.url}/openapi.yaml" in asked
    assert [url for url in asked if not url.startswith((f"{api.url}/", "data:"))] == []  # nothing from elsewhere


def test_the_page_lets_nothing_run_but_its_own_files(stranger):
    policy = stranger.get("/docs").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_the_root_leads_to_the_page(stranger):
    assert "SwaggerUIBundle" in stranger.get("/", status=302).follow(status=200).text


@pytest.mark.parametrize("name", ["__init__.py", "redoc.js", "swagger_bundle.js.map", "..%2f__init__.py", ""])
def test_no_other_file_is_given_out(stranger, name):
    stranger.get(f"/docs/{name}", status=404)
