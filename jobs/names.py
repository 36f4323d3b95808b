"""Names that a job may carry: keys and paths of its images, hosts, and text and metadata to store and to send on.

The contract and the producer's tables check with the same functions, so a name is refused where a person can still
mend it, and never after an edit was computed.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any
from urllib.parse import urlsplit

LONGEST_NAME_BYTES = 1024
"""Of a whole key or path in UTF-8: the bound of S3."""

LONGEST_PART_BYTES = 255
"""Of what stands between two slashes: the bound of common file systems."""

DEEPEST_NAME = 64
"""Folders in a name."""

DEEPEST_METADATA = 32
"""Lists and objects in each other."""

LARGEST_METADATA_BYTES = 2**20
"""Of all metadata of a job as JSON. It lies in Redis with the job and goes into every callback."""

LARGEST_MESSAGE_BYTES = 16 * 2**20
"""Of a message as it lies in Redis, of its body once unpacked, and of a job as JSON. Larger inputs come by URI."""

LONGEST_URL = 8192
"""Characters of an address: what common servers take."""

CONTROLS = frozenset({"Cc", "Zl", "Zp"})
"""Unicode's categories of control characters and of ends of lines and paragraphs."""

DRIVE = re.compile(r"[A-Za-z]:")
TURNS_TEXT_ROUND = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that show a name in another order than it has: `gnp.exe` for `exe.png`."""

DEFAULT_PORTS = {"https": 443, "http": 80}


def host_of(url: str) -> str:
    """Host and port of a web address, the same for every spelling of them.

    Raises:
        ValueError: the port is none.
    """
    parts = urlsplit(url)
    return f"{(parts.hostname or '').rstrip('.')}:{parts.port or DEFAULT_PORTS.get(parts.scheme, 0)}"


def check_key(name: str) -> None:
    """Check the key or path of a picture that is there already.

    Raises:
        ValueError: it is too long, has control characters or half characters, or leaves its folder by `..`.
    """
    check_text(name)
    if not name.isprintable() and any(unicodedata.category(character) in CONTROLS for character in name):
        raise ValueError("has control characters")
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise ValueError(f"is longer than {LONGEST_NAME_BYTES:,} bytes")
    if not {".", ".."}.isdisjoint(name.split("/")):
        raise ValueError("should be a plain name, without '..' and '.'")


def check_new_name(name: str) -> None:
    """Check the key or path of a picture that is to be made: one that every store, file system and viewer can have.

    Raises:
        ValueError: it breaks a rule of `check_key`, has a backslash, a drive or marks of writing direction, ends in a
            slash, or is too deep or too long in a part.
    """
    check_key(name)
    if DRIVE.match(name.lstrip("/")):
        raise ValueError("should not name a drive; outputs go under the output folder or to a bucket")
    if "\\" in name:
        raise ValueError("has a backslash; separate folders by /")
    if not TURNS_TEXT_ROUND.isdisjoint(name):
        raise ValueError("has marks that turn the direction of writing; leave them out")
    parts = name.split("/")
    if not parts[-1]:
        raise ValueError("should end in the name of a file")
    if len(parts) > DEEPEST_NAME:
        raise ValueError(f"is more than {DEEPEST_NAME} folders deep")
    if any(len(part.encode()) > LONGEST_PART_BYTES for part in parts):
        raise ValueError(f"has a part of more than {LONGEST_PART_BYTES} bytes")


def check_text(text: str) -> None:
    """Check that text can be written in UTF-8.

    Raises:
        ValueError: it has half of a surrogate pair.
    """
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ValueError("has half of a surrogate pair (\\ud800 to \\udfff); write the character itself")


def check_metadata(value: Any) -> None:
    """Check that a value survives JSON on its way through Redis and callbacks.

    Raises:
        ValueError: text in it cannot be written in UTF-8, or lists and objects nest deeper than `DEEPEST_METADATA`.
    """
    waiting = [(value, 1)]  # not by recursion, which deep values would break
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            check_text(item)
            continue
        if not isinstance(item, dict | list | tuple):
            continue
        if depth > DEEPEST_METADATA:
            raise ValueError(f"nests lists or objects more than {DEEPEST_METADATA} deep; flatten it")
        if isinstance(item, dict):
            waiting.extend((name, depth + 1) for name in item)
            item = item.values()
        waiting.extend((inner, depth + 1) for inner in item)
