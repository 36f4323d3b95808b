"""A row as it stands in a table, and the interface of what reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Cells = dict[str, Any]


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the file; `number` is 1 for the first row after the header.

    `fault` says why a row cannot be read at all; its cells are then what could be read.
    """

    number: int
    cells: Cells
    fault: str = ""


class TableReader(Protocol):
    """One file of a table.

    Attributes:
        columns: their names, in their order.
        described: the format, for people.
        notes: what people should know about how it was read.
    """

    columns: tuple[str, ...]
    described: str
    notes: tuple[str, ...]

    def rows(self) -> Iterator[tuple[Cells, str]]:
        """Every row with its fault, the first to the last; each iteration begins anew.

        Raises:
            TableError: the rest of the file cannot be read.
        """
        ...


def is_blank(value: Any) -> bool:
    """True for a blank cell: missing, empty or blank text, not a number."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def as_json(value: Any) -> Any:
    """Dates, decimals and what else a job cannot carry become text; bytes stay, for they may be a picture."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return str(value)
