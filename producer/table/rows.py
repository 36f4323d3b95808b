"""Rows of a table as jobs, or the problems that prevent it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from jobs.names import check_metadata
from jobs.schema import EditJob, EditParams, format_named
from producer.table.cells import (
    CellProblem,
    check_prompt,
    has_suffix,
    locate_output,
    means_blank,
    read_number,
    shorten,
)
from producer.table.columns import JOB_COLUMNS, Columns
from producer.table.embedded_images import EmbeddedImages, PutImage, has_bytes, without_bytes
from producer.table.images import RowImages
from producer.table.loras import read_loras
from producer.table.overwriting import InputsAndOutputs
from producer.table.paths import LocalFiles
from producer.table.plan import NAME_COLUMNS, PARAM_COLUMNS, Plan, advice, callback_fields
from producer.table.raw import Cells, RawRow

SIZE_COLUMNS = {"width", "height", "aspect_ratio"}
UNREAD_IMAGES = ["file:///unread"]
"""Placeholder for unreadable images, so that the other cells of the row are checked too."""

FRACTIONS = frozenset(
    name for name, field in EditParams.model_fields.items() if float in (field.annotation, *get_args(field.annotation))
)


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


class RowReader:
    """Makes jobs of the rows of one table; it remembers 8 bytes of each id and output that rows choose.

    Args:
        folder: what relative paths start from.
        put: puts images that stand in the table where workers read them; None only names them.
    """

    def __init__(self, columns: Columns, folder: Path, plan: Plan, put: PutImage | None = None) -> None:
        self._columns = columns
        self._lora_files = LocalFiles(folder, kind="LoRA file")
        self._images = RowImages(LocalFiles(folder), EmbeddedImages(plan.images_root, put))
        self._plan = plan
        self._defaults = plan.defaults.given
        self._kept = frozenset(columns.kept)
        # Names that no row chooses are numbered and cannot meet: then there is nothing to remember.
        sources = (("id", {"id"}), ("output", {"output", "index"}))
        self._seen: dict[str, set[bytes]] = {name: set() for name, source in sources if source & columns.of_role.keys()}
        self._places = InputsAndOutputs(plan.output_root, "output" in columns.of_role)

    def read(self, raw: RawRow) -> TableRow:
        """Make a job of a row; every cell that is wrong gives one problem."""
        if raw.fault:
            return TableRow(raw.number, _shown(raw.cells), "", None, (RowProblem(raw.number, "row", "", raw.fault),))
        problems = [*self._unstorable(raw)]
        if problems:
            unstorable = {problem.column: problem.value for problem in problems}
            return TableRow(raw.number, _shown({**raw.cells, **unstorable}), "", None, tuple(problems))
        cells = self._cells_by_role(raw.cells)
        fields = self._job_fields(raw, cells, problems)
        job = self._validate(fields, raw, problems)
        row = TableRow(raw.number, _shown(raw.cells), fields["id"], None if problems else job, tuple(problems))
        return self._refuse_taken_names(row)

    def _unstorable(self, raw: RawRow) -> Iterator[RowProblem]:
        for name, value in raw.cells.items():
            if isinstance(value, str) and value.isascii():
                continue
            try:
                check_metadata(value)
            except ValueError as error:
                yield RowProblem(raw.number, name, "" if isinstance(value, dict | list) else shorten(value), str(error))

    def _cells_by_role(self, cells: Cells) -> Cells:
        """The cells that mean something to us, by our names for them; words for blank ones are blank."""
        by_role = {role: cells[column] for role, column in self._columns.of_role.items() if column in cells}
        return {role: value for role, value in by_role.items() if not means_blank(value)}

    def _job_fields(self, raw: RawRow, cells: Cells, problems: list[RowProblem]) -> dict[str, Any]:
        batch = self._plan.batch
        index = self._index(raw, cells, problems)
        values = {**self._defaults, **{role: cells[role] for role in JOB_COLUMNS if role in cells}}
        for name in SIZE_COLUMNS - cells.keys() if SIZE_COLUMNS & cells.keys() else ():
            values.pop(name, None)  # the row's own way of asking for a size wins
        if "output_format" not in cells and has_suffix(cells.get("output")):
            values.pop("output_format", None)  # the row's own suffix wins
        params = {name: read_number(values[name], name in FRACTIONS) for name in PARAM_COLUMNS if name in values}
        if "loras" in cells:
            params["loras"] = self._read_loras(raw, cells, problems)
        chosen_format = format_named(str(params.get("output_format", "png")))
        return {
            "id": str(cells.get("id", f"{batch}-{index:06d}-{_hash(raw.cells)}")).strip(),
            "image": self._read_images(raw, cells, problems),
            "prompt": self._prompt(raw, cells, problems),
            "params": params,
            "output": self._output(raw, cells, index, chosen_format, problems),
            "callback": self._callback(raw, cells, values, problems),
            "batch": batch,
            **{name: str(values[name]).strip() for name in NAME_COLUMNS if name in values},
            "metadata": {
                name: value for name, value in raw.cells.items() if name in self._kept and not has_bytes(value)
            },
        }

    def _callback(
        self, raw: RawRow, cells: Cells, values: Mapping[str, Any], problems: list[RowProblem]
    ) -> dict[str, Any] | None:
        if "callback_url" in values:
            return callback_fields(values)
        if "callback_events" in cells:
            alone = CellProblem(cells["callback_events"], "needs a callback_url; give one, or leave this blank")
            self._tell("callback_events", raw, alone, problems)
        return None

    def _read_loras(self, raw: RawRow, cells: Cells, problems: list[RowProblem]) -> list[Any]:
        try:
            return read_loras(cells["loras"], self._lora_files)
        except CellProblem as problem:
            problems.append(RowProblem(raw.number, self._columns.of_role["loras"], problem.value, problem.remedy))
            return []

    def _validate(self, fields: dict[str, Any], raw: RawRow, problems: list[RowProblem]) -> EditJob | None:
        try:
            return EditJob.model_validate(fields)
        except ValidationError as error:
            told = {problem.column for problem in problems}
            for problem in error.errors(include_url=False):
                column = self._columns.source_of(problem["loc"])
                if column not in told:
                    problems.append(RowProblem(raw.number, column, shorten(raw.cells.get(column, "")), advice(problem)))
            return None

    def _index(self, raw: RawRow, cells: Cells, problems: list[RowProblem]) -> int:
        text = str(cells.get("index", raw.number - 1)).strip().removesuffix(".0")
        if text.isascii() and text.isdigit() and len(text) <= 12:
            return int(text)
        self._tell("index", raw, CellProblem(text, "should be a whole number, 0 or more"), problems)
        return 0

    def _prompt(self, raw: RawRow, cells: Cells, problems: list[RowProblem]) -> str:
        text = str(cells.get("prompt", ""))
        try:
            check_prompt(text)
        except CellProblem as problem:
            self._tell("prompt", raw, problem, problems)
        return text

    def _read_images(self, raw: RawRow, cells: Cells, problems: list[RowProblem]) -> list[str]:
        more = {name: raw.cells[name] for name in self._columns.more_images if name in raw.cells}
        images = []
        for column, cell in {self._columns.image: cells.get("image"), **more}.items():
            if column in more and means_blank(cell):
                continue
            try:
                images += self._images.read(cell)
            except CellProblem as problem:
                problems.append(RowProblem(raw.number, column, problem.value, problem.remedy))
                return UNREAD_IMAGES
        return images

    def _output(
        self, raw: RawRow, cells: Cells, index: int, chosen_format: str, problems: list[RowProblem]
    ) -> str | None:
        plan = self._plan
        try:
            return locate_output(cells.get("output"), index, chosen_format, plan.output_root, plan.numbered_root)
        except CellProblem as problem:
            self._tell("output", raw, problem, problems)
            return None

    def _tell(self, role: str, raw: RawRow, problem: CellProblem, problems: list[RowProblem]) -> None:
        problems.append(RowProblem(raw.number, self._columns.column(role), problem.value, problem.remedy))

    def _refuse_taken_names(self, row: TableRow) -> TableRow:
        if row.job is None:
            return row
        names = [(role, str(getattr(row.job, role)), seen) for role, seen in self._seen.items()]
        taken = [
            RowProblem(
                row.number, self._columns.column(role), shorten(name), "is taken by a row above; use another one"
            )
            for role, name, seen in names
            if _digest(name) in seen
        ]
        for _, name, seen in names:
            seen.add(_digest(name))
        if not taken and (met := self._places.add(row.job)) is not None:
            role, name, remedy = met
            taken = [RowProblem(row.number, self._columns.column(role), shorten(name), remedy)]
        return replace(row, job_id="", job=None, problems=tuple(taken)) if taken else row


def _shown(cells: Cells) -> Cells:
    """The cells as they may stand in a report."""
    return {name: value if isinstance(value, str) else without_bytes(value) for name, value in cells.items()}


def _hash(cells: Cells) -> str:
    text = json.dumps(cells, sort_keys=True, default=_name_of_bytes)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _name_of_bytes(value: Any) -> str:
    return hashlib.blake2b(value, digest_size=8).hexdigest()


def _digest(name: str) -> bytes:
    """Short enough that 100,000 names take 10 MB; two different names meet in one table of four billion."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
