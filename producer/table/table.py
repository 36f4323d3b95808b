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
from producer.table.columns import ColumnNames, Columns
from producer.table.embedded_images import PutImage
from producer.table.formats import SUFFIXES, TableFiles, table_suffix
from producer.table.plan import Plan, RowDefaults
from producer.table.rows import RowReader, TableRow
from producer.table.selection import RowSelection

STDIN = "-"
IMAGES_FOLDER = "inputs"
"""Where images that stand in a table itself go, under the outputs."""

LONGEST_BATCH = 100
"""Characters; leaves room for the row's part of a job id."""


class Table:
    """A readable table; make it with `open_table`.

    Args:
        folder: what relative paths start from; the table's own folder when None.
        accepted: names under which its columns are looked for.
    Attributes:
        name: what to call it in messages.
        columns: the names of its columns, in their order.
        meaning: what each column means.
        described: its format, for people.
        notes: what people should know about how it was read.
    """

    def __init__(self, path: Path, name: str, folder: Path | None, accepted: ColumnNames | None) -> None:
        self.name = name
        self._files = TableFiles(path, name)
        self._folder = folder or self._files.folder
        self.columns = self._files.columns
        self.meaning = Columns(self.columns, name, accepted)
        self.described, self.notes = self._files.described, self._files.notes

    def plan(self, output_root: str, defaults: RowDefaults, batch: str = "", images_root: str = "") -> Plan:
        """Decide the batch; outputs without a name go to its folder under `output_root`, a URI.

        Args:
            batch: its name; when empty, the table's name and a hash of all that decides its jobs.
            images_root: URI under which images that stand in the table are put; a folder of `output_root` when empty.
        Raises:
            SettingsError: the name cannot be a batch, or a default cannot be a value.
        """
        if batch and (len(batch) > LONGEST_BATCH or not re.match(JOB_ID_PATTERN, batch)):
            raise SettingsError(
                f"--batch {batch[:40]!r}: use at most {LONGEST_BATCH} letters, digits and . _ : -, "
                "a letter or digit first"
            )
        batch = batch or f"{self._stem()}-{self._digest(output_root, defaults, images_root, self._content())}"
        images_root = images_root or f"{output_root}/{IMAGES_FOLDER}"
        return Plan(batch, output_root, f"{output_root}/{batch}", images_root, defaults.checked())

    def plan_for_folder(self, output_root: str, defaults: RowDefaults) -> Plan:
        """Decide the batch for a folder that holds the outputs of this table only, right under `output_root`.

        The batch does not change with the table's content, so rows that stay the same keep their job ids.

        Raises:
            SettingsError: a default cannot be a value.
        """
        batch = f"{self._stem()}-{self._digest(output_root, defaults)}"
        return Plan(batch, output_root, output_root, f"{output_root}/{IMAGES_FOLDER}", defaults.checked())

    def rows(
        self, plan: Plan, selection: RowSelection | None = None, put: PutImage | None = None
    ) -> Iterator[TableRow]:
        """Read the selected rows one at a time and make a job of each.

        Args:
            selection: instead of the plan's.
            put: puts images that stand in the table where workers read them; None only names them.
        Raises:
            TableError: the rest of the table cannot be read.
        """
        reader = RowReader(self.meaning, self._folder, plan, put)
        return map(reader.read, (selection or plan.selection).of(self._files.rows()))

    def _stem(self) -> str:
        name = "stdin" if self.name == STDIN else Path(self.name).name
        while table_suffix(name) in SUFFIXES and Path(name).suffix:
            name = Path(name).stem
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "table"

    def _content(self) -> str:
        digests = []
        for path in self._files.paths:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "blake2b").hexdigest())
        return " ".join(digests)

    def _digest(self, output_root: str, defaults: RowDefaults, images_root: str = "", content: str = "") -> str:
        """Of the content and of all that gives the same content another meaning."""
        meaning = {**self.meaning.of_role, "images": images_root}
        decided_by = json.dumps([content, str(self._folder), output_root, defaults.given, meaning])
        return hashlib.blake2b(decided_by.encode(), digest_size=4).hexdigest()


@contextmanager
def open_table(source: str, accepted: ColumnNames | None = None) -> Iterator[Table]:
    """Open a table by its path, or standard input by `-`; relative paths in it start from its folder.

    Args:
        source: a file, or a folder: of files that are read in the order of their names, or of images with a table
            `metadata`.
        accepted: other names of its columns than usual.
    Raises:
        TableError: no such file, an unknown kind of file, no header, no image or prompt column.
    """
    if source == STDIN:
        with tempfile.NamedTemporaryFile(prefix="table-") as copy:  # it is read more than once
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield Table(Path(copy.name), STDIN, Path.cwd(), accepted)
        return
    path = Path(source).expanduser()
    if not path.is_file() and not path.is_dir():
        raise TableError(f"{source}: no such file; give the path of a table ({', '.join(SUFFIXES)}), of a folder, or -")
    try:
        table = Table(path, source, None, accepted)
    except OSError as error:
        raise TableError(f"{source}: cannot be read ({error.strerror or error})") from error
    yield table
