"""Images of a gallery: small ones that are made beside the page, and links to the images themselves."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from producer.errors import SetupError
from producer.files import local_path, naming_what_is_written
from producer.gallery.remote import RemoteImages
from producer.images import pillow, thumbnail
from producer.terminal import say

SMALL_SIDE = 400
"""Pixels of the longest side: sharp in the list on a screen with two pixels for one."""
SHOWN_BY_BROWSERS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".bmp"}


class ShownImages:
    """Makes what the page shows of an image; threads may share one.

    The page loads nothing from elsewhere: what lies there is read now, as far as it can be, to make a small image; an
    image at `http(s)://` only when that is wanted.

    Args:
        page: the local file that is written.
        target: where the page will be: the same path, or a place in a bucket.
        fetch: read images at `http(s)://`.
    """

    def __init__(self, page: Path, target: str, fetch: bool = False) -> None:
        self._root = page.parent.resolve()
        self._folder = page.parent / f"{page.stem}-images"
        self._target = target if target.startswith("s3://") else ""
        self._remote = RemoteImages(fetch)
        self._made: dict[str, Path | None] = {}
        self._lock = threading.Lock()
        self._can_shrink = _has_pillow()

    def show(self, uri: str) -> dict[str, Any] | None:
        """Addresses of a small image, of a large one and of the image itself; None when there is nothing to see."""
        path = local_path(uri)
        if path is not None and not path.is_file():
            return None
        link = self.link(uri)
        is_shown = link is not None and "://" not in link and Path(uri).suffix.lower() in SHOWN_BY_BROWSERS
        small = self._small(uri)
        if small is None:
            # Without Pillow the image itself has to do; with it, this one cannot be read.
            return {"small": link, "large": link, "link": link} if is_shown and not self._can_shrink else None
        address = quote(f"{self._folder.name}/{small.name}")
        return {"small": address, "large": link if is_shown else address, "link": link}

    def small_files(self, row: dict[str, Any]) -> tuple[Path | None, Path | None]:
        """Files of the small images of a row as the page has it: of its first input, and of its output."""
        shown = [row["before"][0] if row["before"] else None, row["after"]]
        first, second = (None if one is None else self._root / unquote(one["small"]) for one in shown)
        return first, second

    def link(self, uri: str) -> str | None:
        """Address from the page, relative where it can be; None when a browser cannot follow it."""
        path = local_path(uri)
        if path is not None:
            return None if self._target or not path.is_file() else quote(os.path.relpath(path, self._root))
        if uri.startswith("s3://") and self._target:
            here, there = self._target.removeprefix("s3://"), uri.removeprefix("s3://")
            if here.partition("/")[0] == there.partition("/")[0]:
                return quote(os.path.relpath(there, os.path.dirname(here)))
        return uri if uri.startswith(("https://", "http://")) else None

    def _small(self, uri: str) -> Path | None:
        """A small image of this one, made once."""
        if not self._can_shrink:
            return None
        with self._lock:
            if uri in self._made:
                return self._made[uri]
        made = self._make(uri)
        with self._lock:
            self._made[uri] = made
        return made

    def _make(self, uri: str) -> Path | None:
        target = self._folder / f"{hashlib.sha256(uri.encode()).hexdigest()[:24]}.jpg"
        path = local_path(uri)
        changed_ns = path.stat().st_mtime_ns if path is not None else None
        if changed_ns is not None and target.is_file() and target.stat().st_mtime_ns == changed_ns:
            return target
        source = path if path is not None else self._bytes(uri)
        data = None if source is None else thumbnail(source, SMALL_SIDE)
        if data is None:
            return None
        with naming_what_is_written(target):
            self._folder.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            if changed_ns is not None:
                os.utime(target, ns=(changed_ns, changed_ns))  # how a later page learns that it is of this image
        return target

    def _bytes(self, uri: str) -> bytes | None:
        if uri.startswith("data:") and ";base64," in uri:
            try:
                return base64.b64decode(uri.partition(",")[2])
            except (ValueError, binascii.Error):
                return None
        return self._remote.read(uri)


def _has_pillow() -> bool:
    try:
        pillow()
    except SetupError:
        say("the gallery links whole images: small ones need Pillow (pip install Pillow)")
        return False
    return True
