"""Cells of a table: lists of input images and names of outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from jobs.names import check_new_name
from jobs.schema import FORMAT_OF_SUFFIX, SUFFIX_OF_FORMAT

SHOWN_CHARACTERS = 60
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|(?<=data:))")


class CellProblem(Exception):
    """Raised inside the reading of a row, when a cell cannot be used: what stands there, and what to do."""

    def __init__(self, value: Any, remedy: str) -> None:
        super().__init__(remedy)
        self.value = shorten(value)
        self.remedy = remedy


def shorten(value: Any) -> str:
    """A cell as one short line, for messages."""
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def parse_images(cell: Any, folder: Path) -> list[str]:
    """Read the input images of a row: a URI or path, several separated by commas, or a (JSON) list of them.

    Args:
        folder: what relative paths start from.
    Returns:
        URIs; a path becomes `file://`.
    Raises:
        CellProblem: nothing there, not a list of texts, or a path without a file.
    """
    return [_image_uri(name, folder) for name in _image_names(cell, folder)]


def locate_output(name: Any, index: int, chosen_format: str, output_root: str, numbered_root: str) -> str:
    """URI of a row's output.

    Args:
        name: the row's `output` cell or None; a path under `output_root`, or a whole `s3://` URI. A name without
            suffix gets that of the format.
        index, chosen_format: make the name of a row without one: `000007.png` under `numbered_root`.
    Raises:
        CellProblem: the name leaves the root, is another URI, or has the suffix of another kind of file.
    """
    suffix = SUFFIX_OF_FORMAT.get(chosen_format, ".png")
    if name is None:
        return f"{numbered_root}/{index:06d}{suffix}"
    text = str(name).strip()
    is_whole = text.startswith("s3://")
    _check_output_name(text, text.removeprefix("s3://"))
    text += "" if PurePosixPath(text).suffix else suffix
    if is_whole:
        return text
    return f"{output_root}/{quote(text) if output_root.startswith('file:') else text}"


def has_suffix(name: Any) -> bool:
    """True if the suffix of an `output` cell chooses a format."""
    return name is not None and PurePosixPath(str(name).strip()).suffix.lower() in FORMAT_OF_SUFFIX


def check_output_suffix(name: str) -> None:
    """Check that the suffix of an output's path or URI, if it has one, is that of a format we write.

    Raises:
        CellProblem: it is that of another kind of file.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix and suffix not in FORMAT_OF_SUFFIX:
        raise CellProblem(name, f"cannot write {suffix}; use {', '.join(FORMAT_OF_SUFFIX)}")


def _check_output_name(whole: str, path: str) -> None:
    if URI.match(path) or path.startswith(("/", "~", "\\")):
        raise CellProblem(whole, "should be a name under the output folder (--output), or a whole s3:// URI")
    try:
        check_new_name(path)
    except ValueError as error:
        raise CellProblem(whole, str(error)) from error
    check_output_suffix(whole)


def _image_names(cell: Any, folder: Path) -> list[str]:
    if cell is None:
        raise CellProblem("", "is empty; give the URI or path of a picture")
    names = cell if isinstance(cell, list) else _split(str(cell).strip(), folder)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise CellProblem(cell, 'should be a URI, several separated by commas, or a JSON list such as ["a.png"]')
    return [name.strip() for name in names]


def _split(text: str, folder: Path) -> Any:
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise CellProblem(text, f"is not a JSON list ({error})") from error
    if text.startswith("data:") or "," not in text or (not URI.match(text) and (folder / text).is_file()):
        return [text]
    return [name for name in text.split(",") if name.strip()]


def _image_uri(name: str, folder: Path) -> str:
    if URI.match(name):
        return name
    path = (folder / Path(name).expanduser()).absolute()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero byte
        is_file = False
    if not is_file:
        raise CellProblem(name, f"no such file: {shorten(path)}; relative paths start from the table's folder")
    return path.as_uri()
