"""Chromium, for the tests of the docs page and of docs/clients.md."""

import shutil

import pytest
from selenium import webdriver


def open_browser(width=1280, height=720, scheme="light"):
    """Return a headless Chromium with a window of this size, on a system in light or dark mode."""
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not (program and driver):
        pytest.skip("install Chromium and its driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    return browser


def problems(browser):
    """Return what the browser's console shows, such as what the Content-Security-Policy has blocked."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] != "DEBUG"]
