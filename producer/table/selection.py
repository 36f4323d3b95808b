"""Some of a table's rows, chosen by their places."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jobs.errors import SettingsError
from producer.table.cells import shorten
from producer.table.raw import RawRow

PART = re.compile(r"(?P<only>[0-9]{1,12})|(?P<first>[0-9]{0,12}):(?P<end>[0-9]{0,12})")


@dataclass(frozen=True)
class RowSelection:
    """Rows by their places; the first row after the header has place 0.

    `ranges` are half-open as Python's slices are; None is the end of the table.
    """

    ranges: tuple[tuple[int, int | None], ...]

    @classmethod
    def parse(cls, text: str, option: str) -> RowSelection:
        """Read `0:100`, `100:`, `0,5` or any of them separated by commas.

        Args:
            option: the name under which it was given, for the message.
        Raises:
            SettingsError: it has another form, or a range that is empty.
        """
        parts = [PART.fullmatch(part.strip()) for part in text.split(",") if part.strip()]
        ranges = [_as_range(part) for part in parts if part is not None]
        if not parts or len(ranges) != len(parts) or any(end is not None and end <= first for first, end in ranges):
            raise SettingsError(
                f"{option} {shorten(text)!r}: expected places of rows such as 0:100, 100: or 0,5; the first is 0"
            )
        return cls(tuple(ranges))

    def of(self, rows: Iterable[RawRow]) -> Iterator[RawRow]:
        """The rows that are selected; reads no further than the last of them."""
        ends = [end for _, end in self.ranges]
        last = None if None in ends else max(end for end in ends if end is not None)
        for row in rows:
            if last is not None and row.number > last:
                return
            if any(first < row.number and (end is None or row.number <= end) for first, end in self.ranges):
                yield row


ALL_ROWS = RowSelection(((0, None),))


def _as_range(part: re.Match[str]) -> tuple[int, int | None]:
    if part["only"] is not None:
        return int(part["only"]), int(part["only"]) + 1
    return int(part["first"] or 0), int(part["end"]) if part["end"] else None
