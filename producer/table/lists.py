"""Cells that name several images: lists as JSON, Python and numpy write them, and names between separators."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

from producer.table.cells import URI, CellProblem

SEPARATORS = (",", ";", "|", "\n")
MOST_NAMES = 64
"""Parts of a cell; a row has four pictures at most, and a name with more separators than this is none."""

QUOTED = re.compile(r"""\s*(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*,?\s*""", re.DOTALL)
ARRAY = re.compile(r"(?:array\()?\s*(?P<list>\[.*\])\s*(?:,\s*dtype=[^)]*\))?", re.DOTALL)

HasFile = Callable[[str], bool]


def split_names(text: str, has_file: HasFile) -> Any:
    """Read a cell of text: one name, or a list of names.

    Args:
        has_file: whether a name is that of a file; such a name is taken whole, whatever stands in it.
    Returns:
        A list of names, or what the cell wrote as a list or object.
    Raises:
        CellProblem: it begins like a list and is none.
    """
    text = text.strip()
    if URI.match(text):
        return _split_uris(text, has_file)
    if has_file(text):
        return [text]
    if text.startswith(("[", "(", "{", "array(", "b'", 'b"')):
        return _read_list(text)
    return next((parts for separator in SEPARATORS if (parts := _split_at(text, separator, has_file))), [text])


def _read_list(text: str) -> Any:
    for read in (json.loads, _as_quoted_names, _as_python, _as_bare):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return list(value) if isinstance(value, list | tuple | set) else [value]
    hint = "; the list was cut where it was printed, write it in full" if "..." in text else ""
    raise CellProblem(text, f'is not a list; write it as JSON, such as ["a.png", "b.png"]{hint}')


def _as_quoted_names(text: str) -> list[str]:
    """As Python writes a list, `['a.png', 'b.png']`, and as numpy prints an array, `['a.png' 'b.png']`."""
    inner = ARRAY.fullmatch(text)
    if inner is None:
        raise ValueError("not a list in brackets")
    rest, names = inner["list"][1:-1], []
    while rest.strip():
        quoted = QUOTED.match(rest)
        if quoted is None:
            raise ValueError("not a list of quoted names")
        names.append(str(ast.literal_eval(quoted["text"])))
        rest = rest[quoted.end() :]
    return names


def _as_python(text: str) -> Any:
    """As Python writes what has bytes in it, which pandas puts into CSV so."""
    return ast.literal_eval(text)


def _as_bare(text: str) -> list[str]:
    """Names without quotes in brackets or, as Postgres writes arrays, in braces."""
    ends = {"[": "]", "(": ")", "{": "}"}
    inner = text[1:-1]
    if ends.get(text[0]) != text[-1] or any(mark in inner for mark in "[]{}'\"") or "..." in inner or ":" in inner:
        raise ValueError("not a list of bare names")
    return [name.strip() for name in inner.split(",") if name.strip()]


def _split_uris(text: str, has_file: HasFile) -> list[str]:
    """Split at separators that are followed by another URI or the name of a file; others belong to the URI."""
    if not any(separator in text for separator in SEPARATORS):
        return [text]
    names = [""]
    for part in re.split(r"([,;|\n])", text):
        is_separator = len(part) == 1 and part in SEPARATORS
        begins = part.strip()
        if not is_separator and names[-1] and (URI.match(begins) or (len(begins) > 1 and has_file(begins))):
            names[-1] = names[-1][:-1]  # without the separator before it
            names.append("")
        names[-1] += part
    return [name.strip(" \t\r\n") for name in names if name.strip(" ,;|\t\r\n")]


def _split_at(text: str, separator: str, has_file: HasFile) -> list[str]:
    """Names between separators, of which one in a file's name is no separator; nothing when that gives no names."""
    parts = text.split(separator)
    if not 1 < len(parts) <= MOST_NAMES:
        return []
    names: list[str] = []
    while parts:
        lengths = range(len(parts), 0, -1)
        joined = (separator.join(parts[:length]).strip() for length in lengths)
        length, name = next(
            ((length, name) for length, name in zip(lengths, joined, strict=True) if URI.match(name) or has_file(name)),
            (1, parts[0].strip()),
        )
        names += [name] if name else []
        parts = parts[length:]
    is_sure = separator == "," or all(URI.match(name) or has_file(name) for name in names)
    return names if is_sure else []
