"""The formats of tables, told by content first and by name second, and tables in several files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from producer.errors import TableError
from producer.table.columns import count_known
from producer.table.json_rows import JsonRows
from producer.table.parquet_rows import ParquetRows
from producer.table.raw import RawRow, TableReader, is_blank
from producer.table.separated import SeparatedText
from producer.table.spreadsheet import Spreadsheet
from producer.table.text import TextFile

SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".xlsx")
SHARD_SUFFIXES = frozenset(SUFFIXES) - {".txt", ".xlsx"}
PACKED_SUFFIX = ".gz"
NOT_TABLES = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"})
"""What the package datasets puts beside the tables of a data set."""

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""A folder of pictures with one of these is a data set of the imagefolder form."""


class TableFiles:
    """A table in one file, or in several with the same meaning of columns.

    Args:
        path: a file, or a folder: of an imagefolder data set with `metadata.csv`, or of files that are read in the
            order of their names.
    Attributes:
        paths: the files.
        folder: what relative paths in the table start from.
        columns, described, notes: as of `TableReader`.
    Raises:
        TableError: there is no table, or it cannot be read.
    """

    def __init__(self, path: Path, named: str) -> None:
        self.paths = find_files(path, named)
        self.folder = self.paths[0].parent.resolve()
        is_many = self.paths != [path]
        self._readers = [open_reader(part, f"{named}/{part.name}" if is_many else named) for part in self.paths]
        first = self._readers[0]
        self.columns = tuple(dict.fromkeys(name for reader in self._readers for name in reader.columns))
        self.described = f"{first.described}, {len(self.paths)} files" if len(self.paths) > 1 else first.described
        self.notes = tuple(dict.fromkeys(note for reader in self._readers for note in reader.notes))

    def rows(self) -> Iterator[RawRow]:
        """Every row with anything in it, one in memory at a time; blank cells are left out.

        Raises:
            TableError: the rest of the table cannot be read.
        """
        number = 0
        for reader in self._readers:
            for cells, fault in reader.rows():
                filled = {name: value for name, value in cells.items() if not is_blank(value)}
                if filled or fault:
                    number += 1
                    yield RawRow(number, filled, fault)


def find_files(path: Path, named: str) -> list[Path]:
    """The files of a table in their order.

    Raises:
        TableError: there is none, or a folder has tables of several kinds.
    """
    if not path.is_dir():
        return [path]
    for name in METADATA_NAMES:
        if (path / name).is_file():
            return [path / name]
    found = sorted(part for part in path.iterdir() if _is_shard(part))
    kinds = sorted({table_suffix(part.name) for part in found})
    if not found:
        inner = sorted(part.name for part in path.iterdir() if part.is_dir() and any(map(_is_shard, part.iterdir())))
        hint = f"; there are tables in its folder {inner[0]}" if inner else ""
        raise TableError(f"{named}: a folder without a table{hint}; give a table, or a folder of Parquet, JSON or CSV")
    if len(kinds) > 1:
        raise TableError(f"{named}: has tables of several kinds ({', '.join(kinds)}); give one of them")
    return found


def _is_shard(path: Path) -> bool:
    name = path.name
    is_table = table_suffix(name) in SHARD_SUFFIXES and name not in NOT_TABLES and not name.startswith((".", "_"))
    return is_table and path.is_file()


def table_suffix(name: str) -> str:
    """The suffix that tells the format, without that of packing."""
    return Path(name.lower().removesuffix(PACKED_SUFFIX)).suffix


def open_reader(path: Path, named: str) -> TableReader:
    """Open one file in the format that its first bytes, or else its name, tell.

    Raises:
        TableError: it is not a table, or its beginning cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
    for magic, reader in BY_MAGIC.items():
        if start.startswith(magic):
            return reader(path, named)
    suffix = table_suffix(named)
    if suffix == ".xlsx":
        return Spreadsheet(path, named)
    if suffix == ".parquet":
        return ParquetRows(path, named)
    if suffix not in ("", *SUFFIXES):
        raise TableError(f"{named}: {suffix} is not a table; use {', '.join(SUFFIXES)}, or {PACKED_SUFFIX} of a text")
    if suffix in (".jsonl", ".ndjson", ".json") or (suffix in ("", ".txt") and _begins_like_json(path, named)):
        return JsonRows(path, named)
    return SeparatedText(path, named, "\t" if suffix in (".tsv", ".tab") else ",", count_known)


def _begins_like_json(path: Path, named: str) -> bool:
    with TextFile(path, named).open() as file:
        return file.read(64).lstrip().startswith(("{", "["))


def _refuse(kind: str, remedy: str) -> Callable[[Path, str], TableReader]:
    def refuse(path: Path, named: str) -> TableReader:
        raise TableError(f"{named}: is {kind}; {remedy}")

    return refuse


BY_MAGIC: dict[bytes, Callable[[Path, str], TableReader]] = {
    b"PAR1": ParquetRows,
    b"PK\x03\x04": Spreadsheet,
    b"\xd0\xcf\x11\xe0": _refuse("an old .xls workbook, or one with a password", "save it as .xlsx or CSV"),
    b"version ": _refuse("perhaps a Git LFS pointer", "run git lfs pull"),
    b"\x89PNG": _refuse("a picture", "for one picture there is: producer edit"),
    b"\xff\xd8\xff": _refuse("a picture", "for one picture there is: producer edit"),
    b"ARROW1": _refuse("an Arrow file", "save it as Parquet"),
}
