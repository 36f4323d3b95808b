"""Results as files: CSV, JSON Lines and Parquet, each row with its own columns first, then `RESULT_COLUMNS`.

One of these that the table has too is called `result_<name>`. A CSV of results is also what a later `producer run`
reads to learn which rows are done.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from jobs.schema import JobState
from producer.csv_style import DELIMITERS, CsvStyle, read_cell
from producer.errors import TableError
from producer.files import name_output, naming_what_is_written, replacing
from producer.report import Ending, ReportRow
from producer.table.parquet_rows import ROWS_AT_ONCE
from producer.table.separated import LARGEST_CELL_BYTES

RESULT_COLUMNS = ("state", "output", "seed", "attempts", "seconds", "error", "job_id")
NUMBERS: Mapping[str, Callable[[str], float]] = {"seed": int, "attempts": int, "seconds": float}
ResultFormat = Literal["csv", "jsonl", "parquet"]


@dataclass(frozen=True)
class Layout:
    """Columns of a results file, and the folder that its output files are named from.

    Attributes:
        columns: the table's own, in their order.
        renamed: other names of result columns.
        style: the form of a CSV.
    """

    columns: tuple[str, ...]
    folder: Path
    renamed: Mapping[str, str] = field(default_factory=dict)
    style: CsvStyle = field(default_factory=CsvStyle)

    def name(self, column: str) -> str:
        """Name of a result column beside the table's own columns."""
        name = self.renamed.get(column, column)
        return f"result_{name}" if name in self.columns else name

    @cached_property
    def names(self) -> dict[str, str]:
        """The names of the result columns in this file, by `RESULT_COLUMNS`."""
        return {column: self.name(column) for column in RESULT_COLUMNS}

    def cells(self, row: ReportRow) -> dict[str, Any]:
        """A row by the names of its columns; numbers are numbers, and what does not apply is None."""
        ending = {**vars(row.ending), "output": name_output(row.ending.output, self.folder)}
        own = {name: row.cells.get(name) for name in self.columns}
        return own | {name: None if ending[field] == "" else ending[field] for field, name in self.names.items()}


def write_results(path: Path, layout: Layout, rows: Iterable[ReportRow], chosen: ResultFormat = "csv") -> None:
    """Write a whole file at once: a reader sees the old one or the new one.

    Raises:
        TableError: it cannot be written, or Parquet cannot be written here.
    """
    if chosen == "parquet":
        _write_parquet(path, layout, rows)
        return
    with replacing(path) as file:
        STREAMS[chosen](file, layout, rows)


def stream_csv(file: IO[str], layout: Layout, rows: Iterable[ReportRow]) -> None:
    """Write the table as CSV."""
    style = layout.style
    writer = csv.writer(file, delimiter=style.delimiter, lineterminator="\n")
    file.write(style.beginning)
    writer.writerow(map(style.write, [*layout.columns, *layout.names.values()]))
    for row in rows:
        values = layout.cells(row).values()
        writer.writerow(["" if value is None else style.write(_as_text(value)) for value in values])


def stream_jsonl(file: IO[str], layout: Layout, rows: Iterable[ReportRow]) -> None:
    """Write one JSON object a line: the row's own cells, and `result`, in which an output is a URI."""
    name = layout.name("result")
    for row in rows:
        result = {field: None if value == "" else value for field, value in vars(row.ending).items()}
        file.write(json.dumps({**row.cells, name: result}, ensure_ascii=False) + "\n")


STREAMS: Mapping[str, Callable[[IO[str], Layout, Iterable[ReportRow]], None]] = {
    "csv": stream_csv,
    "jsonl": stream_jsonl,
}


def read_earlier(path: Path, layout: Layout) -> dict[str, Ending]:
    """The rows that an earlier CSV for the same columns shows as ended, as far as that still holds.

    Returns:
        Endings by job id: failed and cancelled ones, and successes whose file is still there; nothing when there is no
        such CSV. A row takes about 500 bytes of memory.
    Raises:
        TableError: the file cannot be read.
    """
    try:
        endings = (_with_uri(ending, layout) for ending in _read_endings(path, layout))
        return {ending.job_id: ending for ending in endings if ending is not None}
    except (OSError, ValueError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read ({error}); mend or remove it, or use --overwrite") from error


def _with_uri(ending: Ending, layout: Layout) -> Ending | None:
    if ending.state in (JobState.FAILED, JobState.CANCELLED):
        return ending
    path = layout.folder / ending.output
    return replace(ending, output=path.resolve().as_uri()) if ending.is_done and _is_filled(path) else None


def _read_endings(path: Path, layout: Layout) -> Iterator[Ending]:
    if not path.is_file():
        return
    csv.field_size_limit(LARGEST_CELL_BYTES)  # a table that is not CSV was read without setting it
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        for row in csv.DictReader(file, delimiter=_delimiter_of(header, layout)):
            cells: dict[str, Any] = {column: read_cell(row.get(name) or "") for column, name in layout.names.items()}
            for column, number in NUMBERS.items():
                cells[column] = number(cells[column]) if cells[column] else None
            yield Ending(**cells)


def _delimiter_of(header: str, layout: Layout) -> str:
    """The sign with which a header of ours was written, which an earlier run may have chosen otherwise."""
    ends = [(sign, sign.join(map(layout.style.write, layout.names.values()))) for sign in DELIMITERS.values()]
    return next((sign for sign, end in ends if header.rstrip("\r\n").endswith(end)), layout.style.delimiter)


def _write_parquet(path: Path, layout: Layout, rows: Iterable[ReportRow]) -> None:
    """Result columns have their types; the table's own are text, since a table that is not Parquet gives them none."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise TableError(f"{path}: writing Parquet needs pyarrow: pip install pyarrow") from error
    types = {"seed": arrow.uint64(), "attempts": arrow.int64(), "seconds": arrow.float64()}
    own = [(name, arrow.string()) for name in layout.columns]
    schema = arrow.schema(own + [(name, types.get(column, arrow.string())) for column, name in layout.names.items()])
    with naming_what_is_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.part")
        remaining = iter(rows)
        with parquet.ParquetWriter(new, schema) as writer:
            while page := list(islice(remaining, ROWS_AT_ONCE)):
                writer.write_table(
                    arrow.Table.from_pylist([_parquet_cells(layout, row) for row in page], schema=schema)
                )
        new.replace(path)


def _parquet_cells(layout: Layout, row: ReportRow) -> dict[str, Any]:
    cells = layout.cells(row)
    return cells | {name: None if cells[name] is None else _as_text(cells[name]) for name in layout.columns}


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
