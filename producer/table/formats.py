"""The rows of CSV, TSV, JSON Lines and Parquet files, read one at a time as dictionaries.

Every cell keeps the type its format gives it: text from CSV and TSV; numbers, lists and so on from the others. Blank
cells are left out, rows without any cell are skipped.
"""

from __future__ import annotations

import codecs
import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, Literal

from producer.errors import TableError

Format = Literal["csv", "tsv", "jsonl", "parquet"]
Cells = dict[str, Any]

FORMAT_OF_SUFFIX: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}
LARGEST_CELL_BYTES = 64 * 2**20
"""A picture as a data: URI fits; a quote that is never closed does not swallow the file."""

READ_BYTES = 2**20
PARQUET_ROWS_AT_ONCE = 1000


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in the file; `number` is 1 for the first row after the header.

    `fault` says why a row cannot be read at all; its cells are then what could be read.
    """

    number: int
    cells: Cells
    fault: str = ""


def sniff_format(path: Path, named: str) -> Format:
    """Format by a file's suffix; a file without a known suffix is JSON Lines if it begins with `{`.

    A folder is a Parquet table in several files.

    Raises:
        TableError: the suffix belongs to a file that is not a table.
    """
    if path.is_dir():
        return "parquet"
    suffix = Path(named).suffix.lower()
    if suffix in FORMAT_OF_SUFFIX:
        return FORMAT_OF_SUFFIX[suffix]
    if suffix not in ("", ".txt"):
        raise TableError(f"{named}: {suffix} is not a table; use {', '.join(FORMAT_OF_SUFFIX)}")
    with path.open("rb") as file:
        return "jsonl" if file.read(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{") else "csv"


def files_of(path: Path) -> list[Path]:
    """The files of a table in their order: one, or those ending in `.parquet` of a folder."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def check_encoding(path: Path, named: str) -> None:
    """Check that a text table is UTF-8.

    Raises:
        TableError: it is not; says where.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        chunk = b"..."
        while chunk:
            start = file.tell()
            chunk = file.read(READ_BYTES)
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                where = start + error.start
                raise TableError(f"{named}: not UTF-8 from about byte {where} on; save the table as UTF-8") from error


def read_columns(path: Path, table_format: Format, named: str) -> tuple[str, ...]:
    """The names of the columns in their order; JSON Lines: the names of all its rows.

    Raises:
        TableError: there is no header, or a name occurs twice in it.
    """
    if table_format == "parquet":
        return tuple(dict.fromkeys(name for file in _open_parquet(path, named) for name in file.schema_arrow.names))
    if table_format == "jsonl":
        return tuple(dict.fromkeys(name for row in read_rows(path, table_format, named) for name in row.cells))
    with _open_text(path) as file:
        return _header(_csv_reader(file, table_format), named)


def read_rows(path: Path, table_format: Format, named: str) -> Iterator[RawRow]:
    """Read a table from its first row to its last, one row in memory at a time.

    Raises:
        TableError: the rest of the file cannot be read, as after a quote that is never closed.
    """
    readers = {"csv": _read_csv, "tsv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}
    return _numbered(readers[table_format](path, table_format, named))


def _numbered(rows: Iterable[tuple[Cells, str]]) -> Iterator[RawRow]:
    number = 0
    for cells, fault in rows:
        filled = {name: value for name, value in cells.items() if not is_blank(value)}
        if filled or fault:
            number += 1
            yield RawRow(number, filled, fault)


def is_blank(value: Any) -> bool:
    """True for a blank cell: missing, empty or blank text, not a number."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


def _open_text(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", newline="")


def _csv_reader(file: IO[str], table_format: Format) -> Any:
    csv.field_size_limit(LARGEST_CELL_BYTES)
    return csv.reader(file, delimiter=DELIMITERS[table_format], strict=True)


def _header(reader: Iterator[list[str]], named: str) -> tuple[str, ...]:
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise TableError(f"{named}, header: {error}") from error
    if not any(names):
        raise TableError(f"{named}: the first line must name the columns, such as image,prompt")
    columns = [name or f"column_{place}" for place, name in enumerate(names, start=1)]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise TableError(f"{named}: column {twice!r} stands twice in the header; rename one")
    return tuple(columns)


def _read_csv(path: Path, table_format: Format, named: str) -> Iterator[tuple[Cells, str]]:
    with _open_text(path) as file:
        reader = _csv_reader(file, table_format)
        columns = _header(reader, named)
        try:
            for values in reader:
                yield dict(zip(columns, values, strict=False)), _surplus(values[len(columns) :], len(columns))
        except csv.Error as error:
            raise TableError(f"{named}, line {reader.line_num}: {error}; check the quotes before it") from error


def _surplus(values: list[str], width: int) -> str:
    if all(is_blank(value) for value in values):
        return ""
    return f"has {width + len(values)} cells for {width} columns; put cells that contain the separator in quotes"


def _read_jsonl(path: Path, table_format: Format, named: str) -> Iterator[tuple[Cells, str]]:
    with _open_text(path) as file:
        for line in file:
            if line.strip():
                yield _parse_line(line)


def _parse_line(line: str) -> tuple[Cells, str]:
    try:
        # JSON has no NaN and no Infinity, though Python's reader takes them: such a cell is blank.
        cells = json.loads(line, parse_constant=lambda name: None)
        if "\\ud" in line.lower():
            json.dumps(cells, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return {}, "has half of a surrogate pair (\\ud800 to \\udfff); write the character itself"
    except ValueError as error:
        return {}, f"is not JSON ({error}); write one object a line"
    if not isinstance(cells, dict):
        return {}, "is not a JSON object; write one object a line"
    return cells, ""


def _read_parquet(path: Path, table_format: Format, named: str) -> Iterator[tuple[Cells, str]]:
    for file in _open_parquet(path, named):
        for batch in file.iter_batches(batch_size=PARQUET_ROWS_AT_ONCE):
            for cells in batch.to_pylist():
                yield {name: _as_json(value) for name, value in cells.items()}, ""


def _open_parquet(path: Path, named: str) -> Iterator[Any]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise TableError(f"{named}: reading Parquet needs pyarrow: pip install pyarrow") from error
    paths = files_of(path)
    if not paths:
        raise TableError(f"{named}: a folder without any .parquet file; give a table, or a folder of Parquet files")
    for part in paths:
        try:
            with parquet.ParquetFile(part) as file:
                yield file
        except (OSError, ValueError) as error:
            shown = f"{named}/{part.name}" if part != path else named
            raise TableError(f"{shown}: not a Parquet file ({error})") from error


def _as_json(value: Any) -> Any:
    """Parquet has dates, decimals and bytes, which a job cannot carry: they become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _as_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(item) for item in value]
    return str(value)
