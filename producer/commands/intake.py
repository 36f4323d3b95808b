"""Checking the rows of a table and telling people what was understood and which rows cannot be queued."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import chain, count
from typing import Any

from jobs.errors import JobNotFound
from producer.client import Client
from producer.local_inputs import LocalInputs
from producer.table.cells import SHOWN_CHARACTERS, shorten
from producer.table.plan import Plan
from producer.table.rows import TableRow
from producer.table.selection import RowSelection
from producer.table.table import Table
from producer.terminal import plural, put_json, say

PROBLEMS_SHOWN = 20
NOTES_SHOWN = 20
COLUMNS_SHOWN = 20
FIRST_ROWS = 3


@dataclass
class TableCheck:
    """Number of rows in a table and of refused ones; images and local inputs of the others, and the first of them."""

    rows: int = 0
    refused: int = 0
    placed_images: int = 0
    local: LocalInputs = field(default_factory=LocalInputs)
    first: list[TableRow] = field(default_factory=list)

    @property
    def good(self) -> int:
        return self.rows - self.refused


def check_table(table: Table, plan: Plan, as_json: bool, selection: RowSelection | None = None) -> TableCheck:
    """Read the selected rows once before anything is queued, and name every cell that cannot be used.

    Raises:
        TableError: the table cannot be read to its end.
    """
    _tell_notes(table, as_json)
    check, problems = TableCheck(), 0
    for row in table.rows(plan, selection):
        check.rows += 1
        check.refused += bool(row.problems)
        if row.job is not None:
            check.local.note(row.job)
            check.placed_images += sum(uri.startswith(f"{plan.images_root}/") for uri in row.job.image)
            check.first += [row] if len(check.first) < FIRST_ROWS else []
        for problem in row.problems:
            problems += 1
            if as_json:
                put_json(event="problem", **asdict(problem))
            elif problems <= PROBLEMS_SHOWN:
                say(str(problem))
    if problems > PROBLEMS_SHOWN and not as_json:
        say(f"... and {plural(problems - PROBLEMS_SHOWN, 'problem')} more; --json shows all")
    return check


def show_understanding(table: Table, plan: Plan, check: TableCheck, as_json: bool) -> None:
    """Show what was understood of a table: its format, the meaning of its columns, and its first good rows."""
    meaning, notes = table.meaning.meaning_of_columns(), table.meaning.notes
    unused = {column: notes[column] for column in table.meaning.kept if column in notes}
    kept = [column for column in table.meaning.kept if column not in unused]
    if as_json:
        put_json(
            event="table",
            name=table.name,
            format=table.described,
            batch=plan.batch,
            columns=meaning,
            kept=kept,
            unused=unused,
        )
        for row in check.first:
            put_json(event="row", row=row.number, job=row.job.model_dump(mode="json") if row.job else None)
        return
    say(f"{table.name}: {table.described}")
    for column, role in meaning.items():
        say(f"  {role} <- {column}" if column != role else f"  {role}")
    for words, columns in (("kept for the results", kept), ("not used", [*unused])):
        if columns:
            more = f" and {len(columns) - COLUMNS_SHOWN:,} more" if len(columns) > COLUMNS_SHOWN else ""
            say(f"  {words}: {', '.join(map(shorten, columns[:COLUMNS_SHOWN]))}{more}")
    for row in check.first:
        say(_describe_row(row))


def tell_placed_images(check: TableCheck, plan: Plan) -> None:
    """Say where images go that stand in the table, for workers must be able to read them there."""
    if check.placed_images:
        variable = "DG_BUCKETS" if plan.images_root.startswith("s3:") else "DG_FILE_ROOTS"
        say(
            f"{plural(check.placed_images, 'image')} of the table go to {plan.images_root}, "
            f"which {variable} must open to the workers; --images-to chooses another place"
        )


def _tell_notes(table: Table, as_json: bool) -> None:
    notes: list[dict[str, Any]] = [{"column": None, "note": note} for note in table.notes]
    notes += [{"column": column, "note": note} for column, note in table.meaning.notes.items()]
    for number, note in enumerate(notes):
        if as_json:
            put_json(event="note", **note)
        elif number < NOTES_SHOWN:
            where = table.name if note["column"] is None else f"column {shorten(note['column'])!r}"
            say(f"{where}: {note['note']}")
    if len(notes) > NOTES_SHOWN and not as_json:
        say(f"... and {plural(len(notes) - NOTES_SHOWN, 'note')} more; --json shows all")


def _describe_row(row: TableRow) -> str:
    job = row.job
    if job is None:
        return f"row {row.number}"
    given = job.params.model_dump(exclude_unset=True)
    params = "".join(f", {name} {value}" for name, value in given.items() if value is not None)
    images = " + ".join(map(_end_of, job.image))
    return f"row {row.number}: {images}, {shorten(job.prompt)!r}{params} -> {_end_of(job.output or '')}"


def _end_of(uri: str) -> str:
    """A URI as one short line; its end tells more than its beginning."""
    if uri.startswith("data:"):
        return f"{uri.partition(';')[0]} of {len(uri):,} characters"
    return uri if len(uri) <= SHOWN_CHARACTERS else f"...{uri[3 - SHOWN_CHARACTERS :]}"


def next_batch(client: Client, batch: str) -> str:
    """The first of `batch`, `batch-2`, `batch-3`, ... that the ledger does not have."""
    for name in chain([batch], (f"{batch}-{number}" for number in count(2))):
        try:
            client.status(name)
        except JobNotFound:
            return name
    raise AssertionError("there are more numbers than batches")
