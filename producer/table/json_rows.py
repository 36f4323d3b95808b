"""JSON Lines, and lists of objects in one JSON file, read one object at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from jobs.names import check_text
from producer.errors import TableError
from producer.table.raw import Cells
from producer.table.text import LONGEST_LINE, NOT_UTF_8, SAMPLE_BYTES, UNREAD, TextFile

# JSON has no NaN and no Infinity, though Python's reader takes them: such a cell is blank.
DECODER = json.JSONDecoder(parse_constant=lambda name: None)
READ_CHARACTERS = 2**20


class JsonRows:
    """Objects of a JSON file: one a line, or in a list.

    Raises:
        TableError: there is no object in it.
    """

    def __init__(self, path: Path, named: str) -> None:
        self._text = TextFile(path, named)
        self._named = named
        with self._text.open() as file:
            self._is_list = file.read(SAMPLE_BYTES).lstrip().startswith("[")
        self.columns = tuple(dict.fromkeys(name for cells, _ in self.rows() for name in cells))
        if not self.columns:
            raise TableError(f"{named}: has no JSON object; write one object a line, or a list of objects")
        self.described = f"{'JSON list' if self._is_list else 'JSON Lines'}, {self._text.encoding}"
        self.notes: tuple[str, ...] = (self._text.note,) if self._text.note else ()

    def rows(self) -> Iterator[tuple[Cells, str]]:
        """Every object, and what is no object, with its fault."""
        if not self._is_list:
            yield from (_parse_line(line) for line in self._text.lines() if line.strip())
            return
        with self._text.open() as file:
            yield from (_as_cells(element) for element in self._elements(file))

    def _elements(self, file: IO[str]) -> Iterator[Any]:
        """The elements of the outermost list, with no more than one of them and a chunk in memory."""
        number = 0
        for number, element in enumerate(_Elements(file), start=1):
            if isinstance(element, Exception):
                raise TableError(f"{self._named}, element {number}: is not JSON ({element}); mend it there")
            yield element


class _Elements(Iterator[Any]):
    """Elements of a list in JSON; the error is the last of them where it is not JSON, or not one whole list."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._buffer = file.read(READ_CHARACTERS).lstrip()[1:]
        self._is_first = True
        self._is_over = False

    def __next__(self) -> Any:
        if self._is_over:
            raise StopIteration
        if not self._is_first and self._skip_blanks() and not self._buffer.startswith("]"):
            if not self._buffer.startswith(","):
                return self._stop("a comma is missing before it")
            self._buffer = self._buffer[1:]
        if not self._skip_blanks() or self._buffer.startswith("]"):
            return self._end()
        if self._buffer.startswith(","):
            return self._stop("there is a comma too many before it")
        self._is_first = False
        while True:
            try:
                element, end = DECODER.raw_decode(self._buffer)
            except (ValueError, RecursionError) as error:
                # Cut, or wrong: only more of the file tells. As much again each time keeps the whole linear.
                more = self._file.read(max(READ_CHARACTERS, len(self._buffer)))
                if isinstance(error, RecursionError) or not more or len(self._buffer) > LONGEST_LINE:
                    return self._stop("nests too deep" if isinstance(error, RecursionError) else str(error))
                self._buffer += more
            else:
                self._buffer = self._buffer[end:]
                return element

    def _end(self) -> Any:
        if not self._buffer:
            return self._stop("the file ends before the list's closing ]")
        self._buffer = self._buffer[1:]
        if self._skip_blanks():
            return self._stop("text after the list's closing ]")
        self._is_over = True
        raise StopIteration

    def _stop(self, said: str) -> ValueError:
        self._is_over = True
        return ValueError(said)

    def _skip_blanks(self) -> bool:
        """True if something follows that is no blank; the buffer begins with it."""
        while not (rest := self._buffer.lstrip(" \t\r\n")):
            self._buffer = self._file.read(READ_CHARACTERS)
            if not self._buffer:
                return False
        self._buffer = rest
        return True


def _parse_line(line: str) -> tuple[Cells, str]:
    if not line.isascii() and UNREAD.search(line):
        return {}, NOT_UTF_8
    try:
        return _as_cells(DECODER.decode(line.strip()))
    except RecursionError:
        return {}, "nests lists or objects too deep; flatten it"
    except ValueError as error:
        return {}, f"is not JSON ({error}); write one object a line"


def _as_cells(element: Any) -> tuple[Cells, str]:
    if not isinstance(element, dict):
        return {}, "is not a JSON object; write one object a line, or a list of objects"
    try:
        for name in element:
            check_text(name)
    except ValueError as error:
        return {}, f"a name {error}"
    return element, ""
