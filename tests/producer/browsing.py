"""Pages in a real browser, which the system brings."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from tests.requirements import require
from tests.waiting import PATIENCE_SECONDS, eventually

HOW_TO_INSTALL = "tests of pages need Chromium: sudo apt-get install chromium"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Looked:
    """A page, with what it has asked for and what its console says."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.said: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))

    def wait_for_images(self, at_least: int) -> None:
        """Wait for all images, asking from outside: the page's own policy forbids what playwright would wait with."""
        seen = "[...document.images].map(image => image.naturalWidth)"
        eventually(lambda: len(widths := self.page.evaluate(seen)) >= at_least and all(widths), what="images")


OpenPage = Callable[..., Looked]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    require(chromium, HOW_TO_INSTALL)
    playwright = import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    contexts = []

    def open_page(address: str, **options: Any) -> Looked:
        context = browser.new_context(**{"viewport": DESK, **options})
        context.set_default_timeout(PATIENCE_SECONDS * 1000)
        contexts.append(context)
        looked = Looked(context.new_page())
        looked.page.goto(address)
        return looked

    yield open_page
    for context in contexts:
        context.close()


def violations(page: Any) -> list[str]:
    """What axe finds against a page; it is let in past the page's own policy."""
    axe = import_module("axe_playwright_python.sync_playwright").Axe()
    return [f"{found['id']}: {found['nodes'][0]['html']}" for found in axe.run(page).response["violations"]]
