"""Checking the rows of a table and telling people which ones cannot be queued."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from producer.local_inputs import LocalInputs
from producer.table.plan import Plan
from producer.table.selection import ALL_ROWS, RowSelection
from producer.table.table import Table
from producer.terminal import plural, put_json, say

PROBLEMS_SHOWN = 20


@dataclass
class TableCheck:
    """Number of rows in a table, number of refused ones, and the local inputs of the others."""

    rows: int = 0
    refused: int = 0
    local: LocalInputs = field(default_factory=LocalInputs)

    @property
    def good(self) -> int:
        return self.rows - self.refused


def check_table(table: Table, plan: Plan, as_json: bool, selection: RowSelection = ALL_ROWS) -> TableCheck:
    """Read the selected rows once before anything is queued, and name every cell that cannot be used.

    Raises:
        TableError: the table cannot be read to its end.
    """
    check, problems = TableCheck(), 0
    for row in table.rows(plan, selection):
        check.rows += 1
        check.refused += bool(row.problems)
        if row.job is not None:
            check.local.note(row.job)
        for problem in row.problems:
            problems += 1
            if as_json:
                put_json(event="problem", **asdict(problem))
            elif problems <= PROBLEMS_SHOWN:
                say(str(problem))
    if problems > PROBLEMS_SHOWN and not as_json:
        say(f"... and {plural(problems - PROBLEMS_SHOWN, 'problem')} more; --json shows all")
    return check
