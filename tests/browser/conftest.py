"""A browser for the tests of this folder; where there is none they are skipped, or fail if it was promised."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_MS = 60_000
"""Longest wait for anything on a page; tests wait for what they need, never for a time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker("browser")


@pytest.fixture(scope="module")  # playwright's event loop runs as long, and the tests of other folders want none
def browser() -> "Iterator[Browser]":
    """Debian's Chromium, headless; FLOWERS_REQUIRE_BROWSER=1 makes its absence a failure."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    reason = None
    if path is None:
        reason = "chromium is not installed (apt-get install chromium)"
    elif importlib.util.find_spec("playwright") is None:
        reason = "playwright is not installed (pip install playwright)"
    if reason is not None:
        if os.environ.get("FLOWERS_REQUIRE_BROWSER"):
            pytest.fail(f"no browser: {reason}")
        pytest.skip(f"no browser: {reason}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # No sandbox: root has none, nor have many containers; the pages are our own. /dev/shm may be tiny in those.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=path, args=options, timeout=WAIT_MS)
        yield browser
        browser.close()


class Watched:
    """A page, and what it did that nobody saw.

    Attributes:
        page: of playwright.
        errors: what went to the console as an error.
        exceptions: of scripts that failed.
        requests: addresses that it asked for.
    """

    def __init__(self, page: "Page"):
        self.page = page
        self.errors: list[str] = []
        self.exceptions: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.exceptions.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def open_page(browser: "Browser"):
    """Opens pages: ``open_page(url, phone=True, dark=True)`` gives a ``Watched`` one."""
    contexts = []

    def open_(url: str, *, phone: bool = False, dark: bool = False) -> Watched:
        size = {"width": 390, "height": 844} if phone else {"width": 1200, "height": 900}
        context = browser.new_context(viewport=size, color_scheme="dark" if dark else "light", is_mobile=phone)
        contexts.append(context)
        watched = Watched(context.new_page())
        watched.page.goto(url, timeout=WAIT_MS)
        return watched

    yield open_
    for context in contexts:
        context.close()
