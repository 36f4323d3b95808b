"""Parquet, through pyarrow (the extra `parquet`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from producer.errors import TableError
from producer.table.raw import Cells, as_json

TEXT_TYPES = frozenset({"string", "large_string"})
BYTES = re.compile("string|binary")
"""In the name of a type: values of any length, perhaps inside lists and structs."""

ROWS_AT_ONCE = 1000
BYTES_AT_ONCE = 16 * 2**20
LARGEST_ROW_BYTES = 256 * 2**20
"""Of a row on the average of its group, unpacked: four pictures of 64 MiB."""

LARGEST_DICTIONARY_BYTES = 2**20
"""A column that names its values by number is unpacked one row at a time when the values are larger than this."""


class ParquetRows:
    """Rows of one Parquet file; bytes stay bytes.

    Raises:
        TableError: pyarrow is missing, or this is no Parquet file.
    """

    described = "Parquet"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, named: str) -> None:
        try:
            self._parquet = import_module("pyarrow.parquet")
        except ImportError as error:
            raise TableError(f"{named}: reading Parquet needs pyarrow: pip install pyarrow") from error
        self._path = path
        self._named = named
        self._has_others = False
        with self._open() as file:
            self.columns = tuple(file.schema_arrow.names)

    def rows(self) -> Iterator[tuple[Cells, str]]:
        """Every row; of a row group, one batch of about `BYTES_AT_ONCE` is unpacked at a time.

        Raises:
            TableError: the rest of the file cannot be read.
        """
        rows = self._rows()
        while True:
            try:
                cells = next(rows)
            except StopIteration:
                return
            except Exception as error:  # pyarrow's errors have no base of their own
                raise TableError(f"{self._named}: cannot be read to its end ({_line(error)})") from error
            yield cells, ""

    def _open(self) -> Any:
        try:
            schema = self._parquet.read_schema(self._path)
            texts = [field.name for field in schema if str(field.type) in TEXT_TYPES]
            self._has_others = any(BYTES.search(str(field.type)) for field in schema if field.name not in texts)
            # Texts that are named by number stay so: unpacked, a small file may have no end.
            return self._parquet.ParquetFile(self._path, read_dictionary=texts)
        except Exception as error:
            raise TableError(f"{self._named}: not a Parquet file that can be read ({_line(error)})") from error

    def _rows(self) -> Iterator[Cells]:
        with self._open() as file:
            for batch in self._batches(file):
                for start in range(0, batch.num_rows, step := self._step(batch)):
                    for cells in batch.slice(start, step).to_pylist():
                        yield {name: as_json(value) for name, value in cells.items()}

    def _batches(self, file: Any) -> Iterator[Any]:
        for group in range(file.num_row_groups):
            about = file.metadata.row_group(group)
            row_bytes = about.total_byte_size // max(about.num_rows, 1)
            if row_bytes > LARGEST_ROW_BYTES:
                raise ValueError(f"rows of {row_bytes:,} bytes; at most {LARGEST_ROW_BYTES:,} are read")
            at_once = min(ROWS_AT_ONCE, max(BYTES_AT_ONCE // max(row_bytes, self._largest_value(about), 1), 1))
            yield from file.iter_batches(at_once, row_groups=[group])

    def _largest_value(self, group: Any) -> int:
        """Bytes of the largest value that may stand in every row of a group, for it is stored once and named by number.

        Columns of text are read by number and need no such care. The size of a column is not asked for: of a damaged
        file, pyarrow ends the process over that question.
        """
        return int(group.total_byte_size) if self._has_others else 0

    def _step(self, batch: Any) -> int:
        named_by_number = [column.dictionary.nbytes for column in batch.columns if hasattr(column, "dictionary")]
        return 1 if max(named_by_number, default=0) > LARGEST_DICTIONARY_BYTES else ROWS_AT_ONCE


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
