"""Rows of a table as jobs, or the problems that prevent it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.schema import EditJob
from producer.errors import TableError
from producer.table.cells import CellProblem, has_suffix, locate_output, parse_images, shorten
from producer.table.formats import Cells, RawRow
from producer.table.plan import PARAM_COLUMNS, Plan, advice

IMAGE_COLUMNS = ("image", "image_url", "image_uri", "input_image", "input_images")
PROMPT_COLUMNS = ("prompt", "instruction")
OUTPUT_COLUMNS = ("output",)
JOB_COLUMNS = ("id", "index", "output", "callback_url", *PARAM_COLUMNS)
UNREAD_IMAGES = ["file:///unread"]
"""Placeholder for unreadable images, so that the other cells of the row are checked too."""


@dataclass(frozen=True)
class ColumnNames:
    """Names under which a table may have its columns; the first that it has counts."""

    image: tuple[str, ...] = IMAGE_COLUMNS
    prompt: tuple[str, ...] = PROMPT_COLUMNS
    output: tuple[str, ...] = OUTPUT_COLUMNS


@dataclass(frozen=True)
class RowProblem:
    """Reason why a row cannot be a job: its place, its value and the remedy; row 1 is the first after the header."""

    row: int
    column: str
    value: str
    remedy: str

    def __str__(self) -> str:
        given = f" {self.value!r}" if self.value else ""
        return f"row {self.row}, {self.column}{given}: {self.remedy}"


@dataclass(frozen=True)
class TableRow:
    """One row with its cells as they stand in the table; `job` is None when there are problems.

    `job_id` is the id that the row's job has or would have; empty when the row has no say in one.
    """

    number: int
    cells: Cells
    job_id: str
    job: EditJob | None
    problems: tuple[RowProblem, ...] = ()


class Columns:
    """Meaning of each column of a table.

    Args:
        names: the columns that the table has.
        accepted: the names under which each is looked for.
    Raises:
        TableError: there is no image or no prompt column, or no output column of a name that was asked for.
    """

    def __init__(self, names: tuple[str, ...], table_name: str, accepted: ColumnNames) -> None:
        self.image = _choose("an image", accepted.image, names, table_name)
        self.prompt = _choose("a prompt", accepted.prompt, names, table_name)
        is_asked_for = accepted.output != OUTPUT_COLUMNS
        self.output = _choose("an output", accepted.output, names, table_name) if is_asked_for else "output"
        self.others = frozenset(names) - {self.image, self.prompt, self.output, *JOB_COLUMNS}
        # Names that no row chooses are numbered and cannot meet: then there is nothing to remember.
        sources = (("id", {"id"}), ("output", {self.output, "index"}))
        self.chosen = [name for name, source in sources if source & {*names}]

    def source_of(self, location: tuple[int | str, ...]) -> str:
        """The column that a field of the job, named as pydantic does, was filled from."""
        if not location:
            return self.output  # the whole job is wrong when output and output_format disagree
        if location[0] == "params" and len(location) > 1:
            return str(location[1])
        columns = {"image": self.image, "prompt": self.prompt, "callback": "callback_url", "output": self.output}
        return columns.get(str(location[0]), str(location[0]))


class RowReader:
    """Makes jobs of the rows of one table; it remembers 8 bytes of each id and output that rows choose.

    Args:
        folder: what relative paths start from.
    """

    def __init__(self, columns: Columns, folder: Path, plan: Plan) -> None:
        self._columns = columns
        self._folder = folder
        self._plan = plan
        self._defaults = plan.defaults.given
        self._seen: dict[str, set[bytes]] = {name: set() for name in columns.chosen}

    def read(self, raw: RawRow) -> TableRow:
        """Make a job of a row; every cell that is wrong gives one problem."""
        if raw.fault:
            return TableRow(raw.number, raw.cells, "", None, (RowProblem(raw.number, "row", "", raw.fault),))
        problems: list[RowProblem] = []
        fields = self._job_fields(raw, problems)
        job = self._validate(fields, raw, problems)
        row = TableRow(raw.number, raw.cells, fields["id"], None if problems else job, tuple(problems))
        return self._refuse_taken_names(row)

    def _job_fields(self, raw: RawRow, problems: list[RowProblem]) -> dict[str, Any]:
        cells, batch = raw.cells, self._plan.batch
        index = self._index(raw, problems)
        values = {**self._defaults, **cells}
        if "output_format" not in cells and has_suffix(cells.get(self._columns.output)):
            values.pop("output_format", None)  # the row's own suffix wins
        return {
            "id": str(cells.get("id", f"{batch}-{index:06d}-{_hash(cells)}")).strip(),
            "image": self._images(raw, problems),
            "prompt": str(cells.get(self._columns.prompt, "")),
            "params": {name: _unpadded(values[name]) for name in PARAM_COLUMNS if name in values},
            "output": self._output(raw, index, str(values.get("output_format", "png")), problems),
            "callback": {"url": _unpadded(values["callback_url"])} if "callback_url" in values else None,
            "batch": batch,
            "metadata": {name: cells[name] for name in cells if name in self._columns.others},
        }

    def _validate(self, fields: dict[str, Any], raw: RawRow, problems: list[RowProblem]) -> EditJob | None:
        try:
            return EditJob.model_validate(fields)
        except ValidationError as error:
            for problem in error.errors(include_url=False):
                column = self._columns.source_of(problem["loc"])
                problems.append(RowProblem(raw.number, column, shorten(raw.cells.get(column, "")), advice(problem)))
            return None

    def _index(self, raw: RawRow, problems: list[RowProblem]) -> int:
        text = str(raw.cells.get("index", raw.number - 1)).strip().removesuffix(".0")
        if text.isascii() and text.isdigit() and len(text) <= 12:
            return int(text)
        problems.append(RowProblem(raw.number, "index", shorten(text), "should be a whole number, 0 or more"))
        return 0

    def _images(self, raw: RawRow, problems: list[RowProblem]) -> list[str]:
        try:
            return parse_images(raw.cells.get(self._columns.image), self._folder)
        except CellProblem as problem:
            problems.append(RowProblem(raw.number, self._columns.image, problem.value, problem.remedy))
            return UNREAD_IMAGES

    def _output(self, raw: RawRow, index: int, chosen_format: str, problems: list[RowProblem]) -> str | None:
        name, plan = raw.cells.get(self._columns.output), self._plan
        try:
            return locate_output(name, index, chosen_format, plan.output_root, plan.numbered_root)
        except CellProblem as problem:
            problems.append(RowProblem(raw.number, self._columns.output, problem.value, problem.remedy))
            return None

    def _refuse_taken_names(self, row: TableRow) -> TableRow:
        if row.job is None:
            return row
        names = [(column, str(getattr(row.job, column)), seen) for column, seen in self._seen.items()]
        taken = [
            RowProblem(row.number, column, shorten(name), "is taken by a row above; use another one")
            for column, name, seen in names
            if _digest(name) in seen
        ]
        for _, name, seen in names:
            seen.add(_digest(name))
        return replace(row, job_id="", job=None, problems=tuple(taken)) if taken else row


def _choose(what: str, accepted: Iterable[str], names: tuple[str, ...], table_name: str) -> str:
    column = next((name for name in accepted if name in names), None)
    if column is None:
        there = ", ".join(names[:20]) or "none"
        raise TableError(f"{table_name}: needs {what} column, named {' or '.join(accepted)}; its columns are: {there}")
    return column


def _hash(cells: Cells) -> str:
    return hashlib.blake2b(json.dumps(cells, sort_keys=True).encode(), digest_size=4).hexdigest()


def _digest(name: str) -> bytes:
    """Short enough that 100,000 names take 10 MB; two different names meet in one table of four billion."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _unpadded(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value
