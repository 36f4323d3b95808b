"""The report on a table or a batch: one row after the other, with the state of its job."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from jobs.errors import ErrorCode
from jobs.ledger import PIPELINE_LENGTH, JobRecord, Ledger
from jobs.schema import EditJob, JobState
from producer.table.embedded_images import is_same_image
from producer.table.plan import Plan
from producer.table.raw import Cells
from producer.table.rows import TableRow
from producer.table.table import Table
from producer.upload import is_uploaded_form

LookUp = Callable[[Sequence[str]], list[JobRecord | None]]

REFUSED = "refused"
CONFLICT = "conflict"
NOT_QUEUED = "not queued"


@dataclass(frozen=True)
class Ending:
    """State of a row: that of its job, or `refused`, `conflict`, `not queued`.

    `output` is a URI; `seconds` are those of the last run; a text that does not apply is empty, a number is None.
    """

    state: str
    output: str = ""
    seed: int | None = None
    attempts: int | None = None
    seconds: float | None = None
    error: str = ""
    job_id: str = ""

    @property
    def is_done(self) -> bool:
        """True if there is an output."""
        return self.state == JobState.SUCCEEDED

    @property
    def code(self) -> str:
        """The error's code, for programs; empty when the job has none."""
        code = self.error.partition(":")[0]
        return code if code in set(ErrorCode) else ""


@dataclass(frozen=True)
class ReportRow:
    """One row of a report: its cells, what was to be done, how it ended, and which engine and model did it."""

    cells: Cells
    images: tuple[str, ...]
    prompt: str
    ending: Ending
    engine: str = ""


def table_report(
    table: Table, plan: Plan, look_up: LookUp, before: Mapping[str, Ending] | None = None
) -> Iterator[ReportRow]:
    """Report every row of a table, a page in memory at a time.

    Args:
        look_up: how to find jobs, such as `ledger.get_many`.
        before: endings by job id that are known from an earlier run, for jobs that are not found; of a row that is
            refused by now only a success.
    """
    rows = table.rows(plan)
    while page := list(islice(rows, PIPELINE_LENGTH)):
        records = look_up([row.job_id for row in page])
        for row, record in zip(page, records, strict=True):
            known = (before or {}).get(row.job_id)
            holds = known is not None and record is None and (known.is_done or row.job is not None)
            ending = known if known is not None and holds else _ending_of_row(row, record)
            job = row.job or (record.job if record else None)
            engine = _engine(record) if known is not ending else ""
            yield ReportRow(row.cells, job.image if job else (), job.prompt if job else "", ending, engine)


def batch_report(batch: str, ledger: Ledger) -> Iterator[ReportRow]:
    """Report every job of a batch without its table: image, prompt, and the columns that had no meaning to us.

    Raises:
        JobNotFound: no such batch.
    """
    ledger.batch_counts(batch)
    job_ids = ledger.batch_job_ids(batch)
    while page := list(islice(job_ids, PIPELINE_LENGTH)):
        yield from (job_report(record) for record in ledger.get_many(page) if record is not None)


def job_report(record: JobRecord) -> ReportRow:
    """Report one job without its table."""
    job = record.job
    cells = {"image": ",".join(job.image), "prompt": job.prompt, **job.metadata}
    return ReportRow(cells, job.image, job.prompt, ending_of(record), _engine(record))


def ending_of(record: JobRecord) -> Ending:
    """State of a job, as the cells of a report."""
    ran = record.finished_at - record.started_at if record.finished_at and record.started_at else None
    error = record.outcome.error
    return Ending(
        state=record.state,
        output=record.outcome.output or "",
        seed=record.job.params.seed,
        attempts=record.attempts,
        seconds=round(ran.total_seconds(), 4) if ran is not None else None,
        error=f"{error.code}: {error.message}" if error else "",
        job_id=record.job.id,
    )


def batch_columns(batch: str, ledger: Ledger) -> tuple[str, ...]:
    """The names of the columns of `batch_report`, from a first look at every job."""
    return tuple(dict.fromkeys(name for row in batch_report(batch, ledger) for name in row.cells))


def _engine(record: JobRecord | None) -> str:
    engine = record.outcome.engine if record is not None else None
    return f"{engine.name} {engine.model}" if engine is not None else ""


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
    if len(asked.image) != len(known.image):
        return False
    images = zip(asked.image, known.image, strict=True)
    return (asked.prompt, asked.batch) == (known.prompt, known.batch) and all(
        is_same_image(one, other) or is_uploaded_form(one, other) for one, other in images
    )
