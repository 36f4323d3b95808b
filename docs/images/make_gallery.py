"""Take the picture of the gallery in docs/producer.md: python docs/images/make_gallery.py demo-output/gallery.html

Needs `make demo` before, and Chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": 1280, "height": 760})
    page.goto(Path(sys.argv[1]).resolve().as_uri())
    page.wait_for_function("[...document.images].every(image => image.naturalWidth)")
    page.screenshot(path=Path(__file__).with_name("gallery.png"))
    browser.close()
