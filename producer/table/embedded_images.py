"""Pictures that stand in a table itself: as bytes, as objects of bytes and path, in base64.

Small ones travel inside their job. Larger ones are put where workers can read them, under a name made of their content,
so the same table gives the same jobs and no picture is put twice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from producer.table.cells import CellProblem

LARGEST_INLINE_BYTES = 16 * 2**10
"""Of a picture that travels in its job, which Redis holds as long as the job."""

MAGIC = {
    b"\x89PNG": (".png", "image/png"),
    b"\xff\xd8\xff": (".jpg", "image/jpeg"),
    b"RIFF": (".webp", "image/webp"),
    b"GIF8": (".gif", "image/gif"),
    b"BM": (".bmp", "image/bmp"),
    b"II*\0": (".tif", "image/tiff"),
    b"MM\0*": (".tif", "image/tiff"),
}
OTHER = (".bin", "application/octet-stream")
BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")
"""PNG, JPEG, WebP and GIF in base64."""

NAME_KEYS = ("path", "url", "uri", "src", "file_name")

CONTENT_NAME = re.compile(r"[0-9a-f]{32}\.\w+")
"""Name of an image that was put somewhere."""

PutImage = Callable[[str, bytes, str], None]
"""Puts bytes at a URI with a content type, where workers read them."""


class EmbeddedImages:
    """Gives pictures that stand in cells a URI.

    Args:
        root: URI of the folder or prefix for those that are not small.
        put: what puts them there; None only names them.
    """

    def __init__(self, root: str, put: PutImage | None) -> None:
        self._root = root
        self._put = put

    def name_of(self, item: object) -> str:
        """The name or URI of one picture of a cell.

        Args:
            item: a name, bytes, a picture in base64, or an object with `bytes` or a name.
        Raises:
            CellProblem: it is none of these.
        """
        if isinstance(item, Mapping):
            item = self._part_of(item)
        if isinstance(item, str):
            item = item.strip()
            if not item.startswith(BASE64_BEGINNINGS) or len(item) < 64:
                return item
            item = _decode(item)
        if not isinstance(item, bytes) or not item:
            raise CellProblem(item, 'should be a URI, several separated by commas, or a JSON list such as ["a.png"]')
        return self._uri_of(item)

    def _part_of(self, item: Mapping[Any, Any]) -> Any:
        data = item.get("bytes")
        if data:
            return _decode(data) if isinstance(data, str) else _as_bytes(data)
        return next((item[key] for key in NAME_KEYS if item.get(key)), None)

    def _uri_of(self, data: bytes) -> str:
        suffix, content_type = next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), OTHER)
        if len(data) <= LARGEST_INLINE_BYTES:
            return f"data:{content_type};base64,{base64.b64encode(data).decode()}"
        uri = f"{self._root}/{hashlib.blake2b(data, digest_size=16).hexdigest()}{suffix}"
        if self._put is not None:
            self._put(uri, data, content_type)
        return uri


def is_same_image(first: str, second: str) -> bool:
    """True for the same URI, and for images of one content that were put at different places."""
    if first == second:
        return True
    name = first.rpartition("/")[2]
    return CONTENT_NAME.fullmatch(name) is not None and second.rpartition("/")[2] == name


def without_bytes(value: Any) -> Any:
    """The value as it may stand in a report: bytes are named by their number."""
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, Mapping):
        if isinstance(value.get("bytes"), bytes):
            name = next((f"{value[key]} " for key in NAME_KEYS if value.get(key)), "")
            return f"{name}{without_bytes(value['bytes'])}"
        return {name: without_bytes(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_bytes(item) for item in value]
    return value


def has_bytes(value: Any) -> bool:
    """True if bytes stand anywhere in the value."""
    if isinstance(value, Mapping):
        return any(has_bytes(item) for item in value.values())
    return isinstance(value, bytes) or (isinstance(value, list | tuple) and any(has_bytes(item) for item in value))


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CellProblem(text, f"is not a picture in base64 ({error})") from error


def _as_bytes(data: Any) -> bytes:
    if isinstance(data, bytes):
        return data
    try:
        return bytes([*data])  # JSON has bytes as a list of numbers
    except (TypeError, ValueError) as error:
        raise CellProblem(data, "has bytes that are none; give them in base64, or the path") from error
