"""CSV, TSV and their relatives: the separator is found in the header line."""

from __future__ import annotations

import csv
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from producer.errors import TableError
from producer.table.raw import Cells, is_blank
from producer.table.text import NOT_UTF_8, UNREAD, TextFile

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SEPARATOR_LINE = re.compile(r'"?sep="*([^\r\n" ]?)"*[,;\t|]*\s*', re.IGNORECASE)
"""The first line by which Excel is told the separator; without one in it, the header tells."""

LARGEST_CELL_BYTES = 64 * 2**20
"""A picture as a data: URI fits."""

MOST_LINES_OF_A_ROW = 1000
"""A quote that is never closed does not swallow more of the file."""


class SeparatedText:
    """A table whose cells stand between separators; the first line names the columns.

    Args:
        usual: the separator when the header does not tell.
        count_known: how many of some names of columns mean something to us; the separator is the one that gives most.
    Raises:
        TableError: there is no header, or a name stands in it twice.
    """

    def __init__(self, path: Path, named: str, usual: str, count_known: Callable[[tuple[str, ...]], int]) -> None:
        self._text = TextFile(path, named)
        self._named = named
        self._delimiter, self._lines_before = self._find_delimiter(usual, count_known)
        self.columns = self._header(self._reader(self._lines()))
        between = DELIMITERS.get(self._delimiter, repr(self._delimiter))
        self.described = f"text separated by {between}, {self._text.encoding}"
        self.notes: tuple[str, ...] = (self._text.note,) if self._text.note else ()

    def rows(self) -> Iterator[tuple[Cells, str]]:
        """The rows after the header, each with what is wrong with it as a whole."""
        lines = self._lines()
        reader = self._reader(lines)
        self._header(reader)
        lines.taken.clear()
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                # The quote that is wrong may have swallowed good rows: they are read again from the next line on.
                yield {}, f"{error}; a quote inside a quoted cell is written twice"
                lines.put_back_all_but_first()
                reader = self._reader(lines)
                continue
            lines.taken.clear()
            if any(UNREAD.search(value) for value in values if not value.isascii()):
                readable = (UNREAD.sub("\N{REPLACEMENT CHARACTER}", value) for value in values)
                yield dict(zip(self.columns, readable, strict=False)), NOT_UTF_8
                continue
            cells = dict(zip(self.columns, values, strict=False))
            yield cells, self._fault(values[len(self.columns) :])

    def _find_delimiter(self, usual: str, count_known: Callable[[tuple[str, ...]], int]) -> tuple[str, int]:
        """The separator, and how many lines stand before the header."""
        for number, line in enumerate(self._text.lines()):
            said = SEPARATOR_LINE.fullmatch(line)
            if said is not None and said[1]:
                return said[1], number + 1
            if line.strip() and said is None:
                order = sorted(DELIMITERS, key=lambda delimiter: delimiter != usual)
                return max(order, key=lambda delimiter: _score(line, delimiter, count_known)), number
        return usual, 0

    def _lines(self) -> _Lines:
        lines = _Lines(self._text.lines())
        for _ in range(self._lines_before):
            next(lines)
        return lines

    def _reader(self, lines: Iterator[str]) -> Any:
        csv.field_size_limit(LARGEST_CELL_BYTES)
        return csv.reader(lines, delimiter=self._delimiter, strict=True)

    def _header(self, reader: Iterator[list[str]]) -> tuple[str, ...]:
        try:
            names = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise TableError(f"{self._named}, header: {error}") from error
        if not any(names):
            raise TableError(f"{self._named}: the first line must name the columns, such as image,prompt")
        if any(UNREAD.search(name) for name in names):
            raise TableError(f"{self._named}: the header is not UTF-8; save the table as UTF-8")
        columns = tuple(name or f"column_{place}" for place, name in enumerate(names, start=1))
        twice = next((name for name, count in Counter(columns).items() if count > 1), None)
        if twice is not None:
            raise TableError(f"{self._named}: column {twice!r} stands twice in the header; rename one")
        return columns

    def _fault(self, surplus: list[str]) -> str:
        if all(is_blank(value) for value in surplus):
            return ""
        width = len(self.columns)
        return f"has {width + len(surplus)} cells for {width} columns; put cells that contain the separator in quotes"


class _Lines(Iterator[str]):
    """Lines that can be put back; `taken` are those of the row that is being read."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __next__(self) -> str:
        if len(self.taken) >= MOST_LINES_OF_A_ROW:
            raise csv.Error(f"a quoted cell of more than {MOST_LINES_OF_A_ROW:,} lines")
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line

    def put_back_all_but_first(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))
        self.taken.clear()


def _score(line: str, delimiter: str, count_known: Callable[[tuple[str, ...]], int]) -> tuple[int, int]:
    try:
        names = tuple(next(csv.reader([line], delimiter=delimiter), []))
    except csv.Error:
        return 0, 0
    return count_known(names), len(names)
