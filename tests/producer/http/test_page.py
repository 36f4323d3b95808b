"""The page at `/` in a real browser: from an image to its edit, what is kept, and what is seen."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from producer import Client
from producer.http.keys import new_key
from tests.producer.browsing import DESK, PHONE, Looked, OpenPage, violations
from tests.producer.http.conftest import OpenDoor, RunningDoor, Workers, png, size_of
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
def looked(door: RunningDoor, open_page: OpenPage) -> Iterator[Looked]:
    """The page of `door`; at the end its console is clean, and nothing has come from elsewhere."""
    looked = open_page(f"{door.url}/")
    yield looked
    assert looked.said == []
    assert {url for url in looked.requests if not url.startswith((door.url, "blob:", "data:"))} == set()


def fill(page: Any, prompt: str, name: str = "cat.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": png()})
    page.fill("#prompt", prompt)


def edit(page: Any, prompt: str = "make it snow") -> None:
    """Edit an image and wait until it is shown."""
    fill(page, prompt)
    page.click("#send")
    page.wait_for_selector("#done", state="visible")
    eventually(lambda: page.evaluate("document.getElementById('after').naturalWidth"))


def covered(page: Any) -> str:
    return str(page.evaluate("document.getElementById('before').style.clipPath"))


def test_an_image_is_edited_and_compared(looked: Looked, workers: Workers, tmp_path: Path) -> None:
    page = looked.page
    page.click("text=More settings")
    page.fill("#seed", "7")

    edit(page)

    assert page.inner_text("#facts").startswith("seed 7 · 64 by 48 · ")
    assert page.get_attribute("#after", "alt") == "After: make it snow"
    assert covered(page) == "inset(0px 50% 0px 0px)"
    page.focus("#slide")
    page.keyboard.press("ArrowRight")
    assert covered(page) == "inset(0px 49% 0px 0px)"
    page.focus("#toggle")
    page.keyboard.press("Space")
    assert (page.get_attribute("#toggle", "aria-pressed"), page.is_visible("#tag-after")) == ("true", False)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "cat-edited.png"
    download.value.save_as(tmp_path / "edited.png")
    assert size_of((tmp_path / "edited.png").read_bytes()) == (64, 48)


def test_steps_are_seen_and_a_cancel_ends_them(looked: Looked, workers: Workers, client: Client) -> None:
    page = looked.page
    fill(page, "hold")
    page.keyboard.press("Control+Enter")

    eventually(lambda: page.inner_text("#step") == "Step 3 of 30")
    assert (page.inner_text("#state"), page.get_attribute("#state", "role")) == ("Editing.", "status")
    assert page.evaluate("document.getElementById('bar').position") == 0.1
    (job_id,) = (edit["id"] for edit in page.evaluate("JSON.parse(localStorage.getItem('edits'))"))
    page.click("#stop")
    eventually(lambda: client.get(job_id).cancel_requested)
    workers.released.set()
    page.wait_for_selector("#failed", state="visible")
    assert page.inner_text("#why") == "Cancelled."
    page.click("#retry")
    page.wait_for_selector("#done", state="visible")


def test_a_failure_says_why(looked: Looked, workers: Workers) -> None:
    page = looked.page
    page.click("#send")
    assert page.inner_text("#fault") == "Choose an image first."
    fill(page, "fail")
    page.click("#send")

    page.wait_for_selector("#failed", state="visible")
    assert page.inner_text("#why") == "input_not_an_image: not a picture"
    assert page.is_visible("#retry")


def test_this_browser_remembers_its_edits(looked: Looked, workers: Workers) -> None:
    page = looked.page
    edit(page, "<b>make it snow</b>")
    eventually(lambda: page.is_visible("#history"))
    page.reload()

    assert page.inner_text("#past") == "<b>make it snow</b>"
    page.click("#past button")
    page.wait_for_selector("#done", state="visible")
    eventually(lambda: page.evaluate("document.getElementById('after').naturalWidth"))
    assert page.is_visible("#before"), "as a small image"
    page.click("#forget")
    assert not page.is_visible("#history")
    page.reload()
    assert not page.is_visible("#history")


def test_a_page_that_was_closed_finds_its_edit_again(looked: Looked, workers: Workers) -> None:
    page = looked.page
    fill(page, "hold")
    page.click("#send")
    eventually(lambda: page.inner_text("#step") == "Step 3 of 30")
    page.reload()

    assert page.inner_text("#past") == "queued: hold"
    page.click("#past button")
    eventually(lambda: page.inner_text("#step") == "Step 3 of 30")
    workers.released.set()
    page.wait_for_selector("#done", state="visible")


def test_images_are_dropped_drawn_and_removed(looked: Looked) -> None:
    page = looked.page
    page.click("#draw")
    page.wait_for_selector("#picked img")
    assert page.input_value("#prompt") == "Paint the background pink"
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array([1])], "dropped.heic"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }"""
    )
    eventually(lambda: "dropped.heic" in page.inner_text("#picked"))
    page.click("[aria-label='Remove drawing.png']")
    assert page.locator("#picked li").count() == 1


def test_the_programs_that_it_shows_do_the_same(looked: Looked, workers: Workers, tmp_path: Path) -> None:
    page = looked.page
    prompt = 'it\'s "red" & $5 \\ é'
    (tmp_path / "cat.png").write_bytes(png())
    edit(page, prompt)
    page.click("#code summary")
    curl, python = page.inner_text("#curl"), page.inner_text("#python")

    environment = {"PATH": "/usr/bin:/bin", "NO_PROXY": "*"}
    program = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path, env=environment, capture_output=True, timeout=PATIENCE_SECONDS
    )
    shell = subprocess.run(["sh", "-c", f"printf '%s\\n' {curl.removeprefix('curl')}"], capture_output=True, text=True)

    assert program.returncode == 0, program.stderr.decode()
    assert size_of((tmp_path / "edited.png").read_bytes()) == (64, 48)
    words = shell.stdout.splitlines()
    assert words[:3] == ["-F", "image=@cat.png", "-F"]
    assert '"prompt":"it\'s \\"red\\" & $5 \\\\ é"' in words[3]


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(
    open_door: OpenDoor, open_page: OpenPage, workers: Workers
) -> None:
    key, entry = new_key("ann")
    page = open_page(f"{open_door(api_keys=entry).url}/").page
    fill(page, "make it snow")
    page.click("#send")

    page.wait_for_selector("#key-field", state="visible")
    assert page.evaluate("document.activeElement.id") == "key"
    assert "key is needed" in page.inner_text("#fault")
    page.fill("#key", key)
    page.click("#send")
    page.wait_for_selector("#done", state="visible")
    assert key not in page.evaluate("JSON.stringify(localStorage)")
    assert key not in page.inner_text("#python") + page.inner_text("#curl")


def test_it_is_accessible_and_fits(door: RunningDoor, open_page: OpenPage, workers: Workers) -> None:
    page = open_page(f"{door.url}/").page

    def check() -> None:
        for viewport in (DESK, PHONE):
            page.set_viewport_size(viewport)
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert violations(page) == []

    page.click("text=More settings")
    fill(page, "fail")
    page.click("#send")
    page.wait_for_selector("#failed", state="visible")
    check()
    edit(page)
    page.click("#code summary")
    eventually(lambda: page.is_visible("#history"))
    check()


def test_the_policy_allows_its_own_script_and_nothing_else(door: RunningDoor, open_page: OpenPage) -> None:
    looked = open_page(f"{door.url}/")
    with door.http() as http:
        policy = http.get("/").headers["content-security-policy"]

    assert "unsafe" not in policy
    looked.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.bad = 1'}))"
    )
    assert looked.page.evaluate("window.bad") is None
    assert any("Content Security Policy" in words for words in looked.said)
