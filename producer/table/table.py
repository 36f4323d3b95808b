"""A table of edits.

    with open_table("data.csv") as table:
        for row in table.rows(table.plan(output_root, RowDefaults())):
            ...  # row.job, or row.problems

Whoever reads the same table with the same plan gets the same batch and the same job ids, so submitting it twice queues
nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.errors import SettingsError
from jobs.schema import JOB_ID_PATTERN
from producer.errors import TableError
from producer.table.formats import Format, check_encoding, files_of, read_columns, read_rows, sniff_format
from producer.table.plan import Plan, RowDefaults
from producer.table.rows import ColumnNames, Columns, RowReader, TableRow
from producer.table.selection import ALL_ROWS, RowSelection

STDIN = "-"
LONGEST_BATCH = 100
"""Characters; leaves room for the row's part of a job id."""


class Table:
    """A readable table; make it with `open_table`.

    Attributes:
        name: what to call it in messages.
        columns: the names of its columns, in their order.
    """

    def __init__(self, path: Path, name: str, folder: Path, accepted: ColumnNames) -> None:
        self.name = name
        self._path = path
        self._folder = folder
        self._format: Format = sniff_format(path, name)
        if self._format != "parquet":
            check_encoding(path, name)
        self.columns = read_columns(path, self._format, name)
        self._columns = Columns(self.columns, name, accepted)

    def plan(self, output_root: str, defaults: RowDefaults, batch: str = "") -> Plan:
        """Decide the batch; outputs without a name go to its folder under `output_root`, a URI.

        Args:
            batch: its name; when empty, the table's name and a hash of all that decides its jobs.
        Raises:
            SettingsError: the name cannot be a batch, or a default cannot be a value.
        """
        if batch and (len(batch) > LONGEST_BATCH or not re.match(JOB_ID_PATTERN, batch)):
            raise SettingsError(
                f"--batch {batch[:40]!r}: use at most {LONGEST_BATCH} letters, digits and . _ : -, "
                "a letter or digit first"
            )
        batch = batch or f"{self._stem()}-{self._digest(output_root, defaults, self._content())}"
        return Plan(batch, output_root, f"{output_root}/{batch}", defaults.checked())

    def plan_for_folder(self, output_root: str, defaults: RowDefaults) -> Plan:
        """Decide the batch for a folder that holds the outputs of this table only, right under `output_root`.

        The batch does not change with the table's content, so rows that stay the same keep their job ids.

        Raises:
            SettingsError: a default cannot be a value.
        """
        batch = f"{self._stem()}-{self._digest(output_root, defaults)}"
        return Plan(batch, output_root, output_root, defaults.checked())

    def rows(self, plan: Plan, selection: RowSelection = ALL_ROWS) -> Iterator[TableRow]:
        """Read the selected rows one at a time and make a job of each.

        Raises:
            TableError: the rest of the table cannot be read.
        """
        reader = RowReader(self._columns, self._folder, plan)
        return map(reader.read, selection.of(read_rows(self._path, self._format, self.name)))

    def _stem(self) -> str:
        stem = "stdin" if self.name == STDIN else Path(self.name).stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:60] or "table"

    def _content(self) -> str:
        digests = []
        for path in files_of(self._path):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
        return " ".join(digests)

    def _digest(self, output_root: str, defaults: RowDefaults, content: str = "") -> str:
        """Of the content and of all that gives the same content another meaning."""
        decided_by = json.dumps([content, str(self._folder), output_root, defaults.given])
        return hashlib.blake2b(decided_by.encode(), digest_size=4).hexdigest()


@contextmanager
def open_table(source: str, accepted: ColumnNames | None = None) -> Iterator[Table]:
    """Open a table by its path, or standard input by `-`; relative paths in it start from its folder.

    Args:
        source: a file, or a folder of Parquet files, which are read in the order of their names.
        accepted: other names of its columns than usual.
    Raises:
        TableError: no such file, an unknown kind of file, no header, no image or prompt column, or not UTF-8.
    """
    accepted = accepted or ColumnNames()
    if source == STDIN:
        with tempfile.NamedTemporaryFile(prefix="table-") as copy:  # it is read more than once
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield Table(Path(copy.name), STDIN, Path.cwd(), accepted)
        return
    path = Path(source).expanduser()
    if not path.is_file() and not path.is_dir():
        raise TableError(f"{source}: no such file; give the path of a CSV, TSV, JSON Lines or Parquet table, or -")
    try:
        folder = path.resolve() if path.is_dir() else path.resolve().parent
        table = Table(path, source, folder, accepted)
    except OSError as error:
        raise TableError(f"{source}: cannot be read ({error.strerror})") from error
    yield table
