"""The gallery in a real browser: what is seen, what keys do, that nothing is loaded from elsewhere."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path
from typing import Any

import pytest

from producer.gallery import write_gallery
from tests.producer.browsing import DESK, PHONE, Looked, violations
from tests.producer.gallery.conftest import HOSTILE, edit_rows


def cards(looked: Looked) -> Any:
    return looked.page.locator(".card")


@pytest.fixture
def gallery(images: Path) -> str:
    write_gallery(images / "gallery.html", "spring", edit_rows(images), batch="spring")
    return (images / "gallery.html").as_uri()


def test_all_rows_are_seen_with_their_images_and_nothing_comes_from_elsewhere(gallery: str, open_page: Any) -> None:
    looked = open_page(gallery)

    looked.wait_for_images(5)
    assert cards(looked).count() == 6
    assert looked.page.title() == looked.page.inner_text("h1") == "spring"
    first, second, third = (cards(looked).nth(place).inner_text() for place in range(3))
    assert "row 1 · succeeded · seed 18446744073709551615 · 4.3 s · native flux1-tiny-kontext" in first
    assert "input_forbidden: file:///data/cat.png" in second
    assert HOSTILE in third, "as text"
    assert "producer retry spring --code input_forbidden" in looked.page.inner_text("#failures")
    assert looked.said == []
    assert {address.partition(":")[0] for address in looked.requests} == {"file"}


def test_rows_are_chosen_by_state_text_and_error(gallery: str, open_page: Any) -> None:
    looked = open_page(gallery)
    page = looked.page

    page.click("text=succeeded 2")
    assert (cards(looked).count(), page.inner_text("#shown")) == (2, "2 of 6 shown")
    page.click("text=all 6")
    page.keyboard.press("/")
    page.keyboard.type("no such file")
    assert cards(looked).count() == 1
    page.keyboard.press("Escape")
    assert cards(looked).count() == 6
    page.select_option("#code", "cancelled")
    assert cards(looked).count() == 1
    page.fill("#text", "nothing of the kind")
    assert page.is_visible("text=No edit matches.")


def test_before_and_after_are_compared_by_slider_toggle_and_keys(gallery: str, open_page: Any) -> None:
    page = open_page(gallery).page
    page.focus(".card >> nth=0 >> button")

    page.keyboard.press("Enter")
    assert page.inner_text("#about p").startswith("make it blue make it blue"), "a long prompt is whole here"
    covered = "getComputedStyle(document.getElementById('before')).clipPath"
    assert page.evaluate(covered) == "inset(0px 50% 0px 0px)"
    page.fill("#slide", "20")
    assert page.evaluate(covered) == "inset(0px 80% 0px 0px)"
    page.focus("#about")
    page.keyboard.press("Space")
    assert page.evaluate(covered) in ("inset(0px)", "inset(0px 0% 0px 0px)")
    assert page.get_attribute("#toggle", "aria-pressed") == "true"

    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer-title").startswith("row 2 · failed")
    assert page.is_visible("text=producer retry two")
    page.keyboard.press("ArrowRight")
    assert page.eval_on_selector_all("#about a", "links => links.map(link => link.getAttribute('href'))") == [
        *("in/cat.png", "https://example.org/a.png?x='\"><b>", "out/%C3%A4%20b.png")
    ]
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#viewer-title").startswith("row 1 · ")
    page.keyboard.press("Escape")
    assert not page.is_visible("#viewer")
    assert page.evaluate("document.activeElement.className") == "pair", "the card is in focus again"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_accessible_and_fits(gallery: str, open_page: Any, viewport: dict[str, int], scheme: str) -> None:
    page = open_page(gallery, viewport=viewport, color_scheme=scheme).page

    for is_viewer in (False, True):
        if is_viewer:
            page.click(".pair >> nth=0")
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert page.evaluate("document.getElementById('stage').getBoundingClientRect().right") <= viewport["width"]


def test_ten_thousand_rows_scroll_smoothly(images: Path, open_page: Any) -> None:
    write_gallery(images / "gallery.html", "spring", edit_rows(images, 10_000))
    looked = open_page((images / "gallery.html").as_uri())

    milliseconds = looked.page.evaluate(
        """async () => {
            const frame = () => new Promise(requestAnimationFrame), times = [];
            for (let step = 0; step < 40; step++) {
                const start = performance.now();
                scrollTo(0, document.documentElement.scrollHeight * step / 39);
                await frame(); await frame();
                times.push(performance.now() - start);
            }
            return times.sort((a, b) => a - b);
        }"""
    )

    assert cards(looked).count() < 60, "only what is near the window is in the page"
    assert "row 10000" in cards(looked).last.inner_text()
    assert milliseconds[len(milliseconds) // 2] < 1000, "two frames: 33 ms where nothing else runs"
    looked.page.fill("#text", "snow")
    assert looked.page.inner_text("#shown") == "1,667 of 10,000 shown"


def test_it_works_from_a_server_as_it_does_from_disk(images: Path, open_page: Any) -> None:
    write_gallery(images / "gallery.html", "spring", edit_rows(images), batch="spring")
    handler = functools.partial(QuietHandler, directory=str(images))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"

        looked = open_page(f"{address}/gallery.html")
        looked.wait_for_images(1)

        assert {url[: len(address)] for url in looked.requests} == {address}
        assert [words for words in looked.said if "favicon" not in words and "404" not in words] == []
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass
