"""A headless Chromium that a test can drive, what it did on the way, and what a reader of the live page does in it."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait
from waiting import PATIENCE

from vllm_infogain.request.params import SAMPLERS
from vllm_infogain.serving.page import ROUTE

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-dev-shm-usage",  # containers have little of it
    "--disable-background-networking",
    "--hide-scrollbars",
)
# What a screen reader says of a cell: position from 1, token, step, nats; where the other canvas differs, its token.
CELL = re.compile(
    r"Position (\d+): (\".*\"), written in step (\d+) at (\d+\.\d{4}) nats(?:; the other side has \".*\")?", re.DOTALL
)


@contextmanager
def open_browser() -> Iterator[Chrome]:
    """A fresh browser. Without one on this machine the test is skipped, and fails where CI is set."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        missing = "the live page is NOT TESTED: no chromium with chromedriver; install both (as root: `make browser`)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = ChromeOptions()
    options.binary_location = chromium
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = Chrome(options, Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


@contextmanager
def open_page(browser: Chrome, url: str) -> Iterator[Chrome]:
    """The page, freshly loaded. At its end: no script failed, its policy refused nothing, it asked no other host."""
    show_as(browser)
    browser.get("about:blank")
    console(browser)
    requested_urls(browser)
    browser.get(url + ROUTE)
    wait_until(browser, lambda: browser.find_element(By.ID, "results").is_displayed())  # the recorded answer
    assert len(Select(browser.find_element(By.ID, "left")).options) == len(SAMPLERS)
    yield browser
    assert [entry for entry in console(browser) if entry["source"] != "network"] == []
    asked = requested_urls(browser)
    assert f"{url}{ROUTE}/samplers" in asked
    assert [target for target in asked if not target.startswith((f"{url}/", "data:"))] == []


def show_as(browser: Chrome, width: int = 1180, height: int = 1000, scheme: str = "light") -> None:
    """Set the size of the page's window in CSS pixels, and the colour scheme the reader prefers."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    preference = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [preference]})


def console(browser: Chrome) -> list[dict]:
    """Entries since the last call: script errors, what the policy refused, failed requests (source `network`)."""
    return browser.get_log("browser")


def requested_urls(browser: Chrome) -> list[str]:
    """URLs of all requests since the last call."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def wait_until(browser: Chrome, condition) -> None:
    WebDriverWait(browser, PATIENCE, poll_frequency=0.05).until(lambda _: condition())


def fields_of(browser: Chrome, name: str, sides: tuple[str, ...] = ("left", "right")) -> list[WebElement]:
    """The one field of this name, or that of each side."""
    shared = browser.find_elements(By.ID, name)
    return shared or [browser.find_element(By.CSS_SELECTOR, f"#{side}-side [data-knob={name}]") for side in sides]


def fill(browser: Chrome, *sides: str, **fields) -> None:
    """Fill these fields, of both sides or of those named."""
    for name, value in fields.items():
        for field in fields_of(browser, name, sides or ("left", "right")):
            field.clear()
            field.send_keys(str(value))


def marked(browser: Chrome) -> list[WebElement]:
    """Fields that are said to be wrong."""
    return browser.find_elements(By.CSS_SELECTOR, "[aria-invalid=true][aria-errormessage=problem]")


def run(browser: Chrome, left: str = "entropy", right: str = "info_gain", expect: str = "Done.") -> None:
    """Press the button and wait for the end of both runs, which must be as expected."""
    Select(browser.find_element(By.ID, "left")).select_by_visible_text(left)
    Select(browser.find_element(By.ID, "right")).select_by_visible_text(right)
    browser.find_element(By.ID, "run").click()
    wait_until(browser, lambda: text_of(browser, "status") != "Running…")
    assert text_of(browser, "status") == expect, text_of(browser, "problem")
    assert bool(text_of(browser, "problem")) == (expect != "Done.")


def run_without_an_answer(browser: Chrome) -> str:
    """The problem that is shown, beside the answer that stood there before and is said to be of before."""
    before = cells(browser)
    run(browser, expect="Not done.")
    assert before
    assert cells(browser) == before
    assert text_of(browser, "source").startswith(("Recorded:", "From an earlier run."))
    return text_of(browser, "problem")


def text_of(browser: Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def cells(browser: Chrome) -> list[list[dict]]:
    """Of both canvases, every cell: the text shown, its classes, and what a screen reader says."""
    return browser.execute_script("""
        const cells = (panel) => [...panel.querySelectorAll(".cell")].map((cell) => (
            { text: cell.textContent, classes: [...cell.classList], label: cell.ariaLabel }));
        return [...document.querySelectorAll(".panel")].map(cells);
    """)


def filled(browser: Chrome) -> list[int]:
    return [sum("masked" not in cell["classes"] for cell in canvas) for canvas in cells(browser)]


def written(canvas: list[dict]) -> list[tuple[int, str, int, str]]:
    """(position from 0, token, step, nats) of every cell, from what a screen reader says; all must be filled."""
    found = [CELL.fullmatch(cell["label"]).groups() for cell in canvas]
    return [(int(position) - 1, json.loads(token), int(step), nats) for position, token, step, nats in found]
