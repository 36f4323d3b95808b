"""Cells of a table: blank ones, numbers, and names of outputs."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from jobs.names import check_new_name
from jobs.schema import FORMAT_OF_SUFFIX, SUFFIX_OF_FORMAT, without_signature

SHOWN_CHARACTERS = 60
URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|(?<=data:))", re.IGNORECASE)

BLANK_WORDS = frozenset(
    [
        "nan",
        "NaN",
        "NAN",
        "-nan",
        "NA",
        "N/A",
        "n/a",
        "<NA>",
        "NaT",
        "None",
        "none",
        "null",
        "Null",
        "NULL",
        "\\N",
        "#N/A",
    ]
)
"""Words that databases, pandas and spreadsheets write into a cell without a value."""

SPREADSHEET_ERRORS = frozenset(["#NAME?", "#REF!", "#VALUE!", "#DIV/0!", "#NULL!", "#NUM!", "#NV"])
"""What a spreadsheet makes of a text that begins with `=` or `-`."""

DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+)")
SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}")
"""What looks like the suffix of a kind of file; `.5 final` does not."""


class CellProblem(Exception):
    """Raised inside the reading of a row, when a cell cannot be used: what stands there, and what to do."""

    def __init__(self, value: Any, remedy: str) -> None:
        super().__init__(remedy)
        self.value = shorten(value)
        self.remedy = remedy


def shorten(value: Any) -> str:
    """A cell as one short line, for messages."""
    text = " ".join(str(value)[: 20 * SHOWN_CHARACTERS].split())
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."


def means_blank(value: Any) -> bool:
    """True for a word that stands for a blank cell."""
    return isinstance(value, str) and value.strip() in BLANK_WORDS


def read_number(value: Any, is_fraction: bool) -> Any:
    """The cell of a number or word as the schema reads it: without padding, with a point for the decimal comma."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    return DECIMAL_COMMA.sub(r"\1.\2", text) if is_fraction and DECIMAL_COMMA.fullmatch(text) else text


def check_prompt(text: str) -> None:
    """Check that a prompt is not what a spreadsheet writes in place of a text.

    Raises:
        CellProblem: it is.
    """
    if text.strip() in SPREADSHEET_ERRORS:
        raise CellProblem(text, "is an error of the spreadsheet; write the text with an apostrophe before it there")


def locate_output(name: Any, index: int, chosen_format: str, output_root: str, numbered_root: str) -> str:
    """Say where a row's output goes, as a URI.

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
    is_link = text.startswith(("https://", "http://"))
    is_whole = is_link or text.startswith("s3://")
    text = text if is_whole else text.removeprefix("./")
    _check_output_name(text, without_signature(text).partition("://")[2] if is_whole else text)
    if is_link:
        return text
    text += "" if has_suffix(text) else suffix
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
    suffix = PurePosixPath(without_signature(name)).suffix.lower()
    if SUFFIX.fullmatch(suffix) and suffix not in FORMAT_OF_SUFFIX:
        raise CellProblem(name, f"cannot write {suffix}; use {', '.join(FORMAT_OF_SUFFIX)}")


def _check_output_name(whole: str, path: str) -> None:
    try:
        check_new_name(path)
    except ValueError as error:
        raise CellProblem(whole, str(error)) from error
    if URI.match(path) or path.startswith(("/", "~")):
        raise CellProblem(whole, "should be a name under the output folder (--output), or a whole s3:// URI")
    check_output_suffix(whole)
