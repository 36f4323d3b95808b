"""The report on a table, `results.csv`: one line per row, with the state of its job.

The file has every row in its order with its original columns, then `RESULT_COLUMNS`; one of these that the table has
too is called `result_<name>`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from jobs.ledger import PIPELINE_LENGTH, JobRecord, Ledger
from jobs.schema import EditJob
from producer.errors import TableError
from producer.files import name_output, replacing
from producer.table.formats import LARGEST_CELL_BYTES, Cells
from producer.table.plan import Plan
from producer.table.rows import TableRow
from producer.table.table import Table

RESULT_COLUMNS = ("state", "output", "seed", "attempts", "seconds", "error", "job_id")

LookUp = Callable[[Sequence[str]], list[JobRecord | None]]

REFUSED = "refused"
CONFLICT = "conflict"
NOT_QUEUED = "not queued"


@dataclass(frozen=True)
class Ending:
    """State of a row: that of its job, or `refused`, `conflict`, `not queued`.

    `output` is a URI; `seconds` are those of the last run; what does not apply is empty.
    """

    state: str
    output: str = ""
    seed: str = ""
    attempts: str = ""
    seconds: str = ""
    error: str = ""
    job_id: str = ""


@dataclass(frozen=True)
class ReportRow:
    """One row of a report: its cells, what was to be done, and how it ended."""

    cells: Cells
    images: tuple[str, ...]
    prompt: str
    ending: Ending


def table_report(
    table: Table, plan: Plan, look_up: LookUp, before: Mapping[str, Ending] | None = None
) -> Iterator[ReportRow]:
    """Report every row of a table, a page in memory at a time.

    Args:
        look_up: how to find jobs, such as `ledger.get_many`.
        before: endings by job id that are known from an earlier run, for jobs that are not found.
    """
    rows = table.rows(plan)
    while page := list(islice(rows, PIPELINE_LENGTH)):
        records = look_up([row.job_id for row in page])
        for row, record in zip(page, records, strict=True):
            known = (before or {}).get(row.job_id)
            ending = known if known is not None and record is None else _ending_of_row(row, record)
            job = row.job or (record.job if record else None)
            yield ReportRow(row.cells, job.image if job else (), job.prompt if job else "", ending)


def batch_report(batch: str, ledger: Ledger) -> Iterator[ReportRow]:
    """Report every job of a batch without its table: image, prompt, and the columns that had no meaning to us.

    Raises:
        JobNotFound: no such batch.
    """
    ledger.batch_counts(batch)
    job_ids = ledger.batch_job_ids(batch)
    while page := list(islice(job_ids, PIPELINE_LENGTH)):
        for record in ledger.get_many(page):
            if record is not None:
                job = record.job
                cells = {"image": ",".join(job.image), "prompt": job.prompt, **job.metadata}
                yield ReportRow(cells, job.image, job.prompt, ending_of(record))


def ending_of(record: JobRecord) -> Ending:
    """State of a job, as the cells of a report."""
    ran = record.finished_at - record.started_at if record.finished_at and record.started_at else None
    error = record.outcome.error
    return Ending(
        state=record.state,
        output=record.outcome.output or "",
        seed=str(record.job.params.seed),
        attempts=str(record.attempts),
        seconds=f"{ran.total_seconds():.3f}" if ran is not None else "",
        error=f"{error.code}: {error.message}" if error else "",
        job_id=record.job.id,
    )


def write_results(path: Path, columns: tuple[str, ...], rows: Iterable[ReportRow]) -> None:
    """Write `results.csv` all at once: a reader sees the old file or the new one."""
    with replacing(path) as file:
        stream_results(file, columns, rows, path.parent)


def stream_results(file: IO[str], columns: tuple[str, ...], rows: Iterable[ReportRow], folder: Path) -> None:
    """Write the table; output files below `folder` are named relative to it, other files by their path."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, *result_columns(columns)])
    for row in rows:
        ending = row.ending
        cells = [_as_text(row.cells.get(name, "")) for name in columns]
        output = name_output(ending.output, folder)
        seconds_error_id = (ending.seconds, ending.error, ending.job_id)
        writer.writerow([*cells, ending.state, output, ending.seed, ending.attempts, *seconds_error_id])


def read_finished(path: Path, columns: tuple[str, ...]) -> dict[str, Ending]:
    """The rows that an earlier `results.csv` for the same columns shows as succeeded, and whose file is still there.

    Returns:
        Endings by job id; nothing when there is no such file. A row takes about 500 bytes of memory.
    Raises:
        TableError: the file cannot be read.
    """
    try:
        return {
            ending.job_id: Ending(**{**vars(ending), "output": (path.parent / ending.output).resolve().as_uri()})
            for ending in _read_endings(path, columns)
            if ending.state == "succeeded" and _is_filled(path.parent / ending.output)
        }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: cannot be read ({error}); mend or remove it, or use --overwrite") from error


def result_columns(columns: tuple[str, ...]) -> list[str]:
    """Names of `RESULT_COLUMNS` in a table with these columns."""
    return [name_beside(columns, name) for name in RESULT_COLUMNS]


def name_beside(columns: tuple[str, ...], name: str) -> str:
    """Name of a result column in a table with these columns."""
    return f"result_{name}" if name in columns else name


def batch_columns(batch: str, ledger: Ledger) -> tuple[str, ...]:
    """The names of the columns of `batch_report`, from a first look at every job."""
    return tuple(dict.fromkeys(name for row in batch_report(batch, ledger) for name in row.cells))


def _ending_of_row(row: TableRow, record: JobRecord | None) -> Ending:
    if record is not None and (row.job is None or _is_same(row.job, record.job)):
        return ending_of(record)
    if record is not None:
        return Ending(CONFLICT, error=f"job {record.job.id!r} asks for something else", job_id=row.job_id)
    if row.problems:
        said = "; ".join(str(problem).partition(", ")[2] for problem in row.problems)
        return Ending(REFUSED, error=said, job_id=row.job_id)
    return Ending(NOT_QUEUED, job_id=row.job_id)


def _is_same(asked: EditJob, known: EditJob) -> bool:
    """True if the record belongs to this row; parameters may have come from the command line and are not compared."""
    return (asked.image, asked.prompt, asked.batch) == (known.image, known.prompt, known.batch)


def _read_endings(path: Path, columns: tuple[str, ...]) -> Iterator[Ending]:
    names = dict(zip(RESULT_COLUMNS, result_columns(columns), strict=True))
    if not path.is_file():
        return
    csv.field_size_limit(LARGEST_CELL_BYTES)  # a table that is not CSV was read without setting it
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            yield Ending(**{field: row.get(name) or "" for field, name in names.items()})


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
