"""Failed jobs of a batch, grouped by code: how many, one example, the remedy, and the command that takes them up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from jobs.errors import ErrorCode
from jobs.ledger import PIPELINE_LENGTH, JobRecord, Ledger
from jobs.ledger.scripts import chunks
from jobs.schema import JobState
from producer.terminal import put_json, say

# The message of a job says what was wrong with it; a remedy says what makes jobs of this kind succeed.
REMEDIES = {
    ErrorCode.INVALID_JOB: "correct what the message names, and submit the job again",
    ErrorCode.INPUT_NOT_FOUND: "put the input there; if its address is wrong, correct the table and submit it again",
    ErrorCode.INPUT_FORBIDDEN: (
        "open the place where the workers run: DG_FILE_ROOTS for file://, DG_BUCKETS for s3://, DG_PRIVATE_HOSTS for "
        "hosts inside your network; or let producer submit --upload put local inputs into a bucket"
    ),
    ErrorCode.INPUT_UNREACHABLE: "see that the workers reach the store or host",
    ErrorCode.INPUT_TOO_LARGE: "make the input smaller, or raise DG_MAX_INPUT_BYTES or DG_MAX_INPUT_PIXELS there",
    ErrorCode.INPUT_NOT_AN_IMAGE: "replace the input by an image",
    ErrorCode.OUTPUT_FORBIDDEN: "open the output's place where the workers run: DG_FILE_ROOTS, DG_BUCKETS",
    ErrorCode.OUTPUT_NOT_FOUND: "make the bucket or folder of the output",
    ErrorCode.OUTPUT_UNAVAILABLE: "see that the workers may write to the store, and that it has room",
    ErrorCode.OUT_OF_MEMORY: "ask for a smaller size, or set DG_FLUX_KONTEXT_OFFLOAD=true where the workers run",
    ErrorCode.DEADLINE_EXCEEDED: "allow more time: timeout_seconds of the job, DG_JOB_TIMEOUT_SECONDS of the workers",
    ErrorCode.ENGINE_FAILED: "see the worker's log",
    ErrorCode.WORKER_LOST: "see why workers die: their log, the kernel's log, the memory",
    ErrorCode.CANCELLED: "they were cancelled on request",
    ErrorCode.INTERNAL: "see the worker's log, and report it",
}


@dataclass(frozen=True)
class FailureGroup:
    """Jobs that ended with one code; `job_id` and `message` are those of the first of them."""

    code: ErrorCode
    count: int
    job_id: str
    message: str

    @property
    def remedy(self) -> str:
        return REMEDIES.get(self.code, "see the worker's log")


def group_failures(ledger: Ledger, batch: str) -> list[FailureGroup]:
    """The failed and cancelled jobs of a batch by code, most first; reads no further than the last of them.

    Raises:
        JobNotFound: no such batch.
    """
    counts = ledger.batch_counts(batch)
    missing = counts[JobState.FAILED] + counts[JobState.CANCELLED]
    groups: dict[ErrorCode, FailureGroup] = {}
    for page in chunks(ledger.batch_job_ids(batch), PIPELINE_LENGTH) if missing else ():
        for record in ended_badly(ledger.get_many(page)):
            missing -= 1
            add(groups, record)
        if missing <= 0:
            break
    return sorted(groups.values(), key=lambda group: -group.count)


def ended_badly(records: Iterable[JobRecord | None]) -> list[JobRecord]:
    """Those that have ended without an output."""
    return [record for record in records if record is not None and record.outcome.error is not None]


def add(groups: dict[ErrorCode, FailureGroup], record: JobRecord) -> None:
    error = record.outcome.error
    assert error is not None
    group = groups.get(error.code) or FailureGroup(error.code, 0, record.job.id, error.message)
    groups[error.code] = replace(group, count=group.count + 1)


def tell_failures(groups: list[FailureGroup], as_json: bool, name: str | None) -> None:
    """Say what failed, why, and how to take it up.

    Args:
        name: the batch or job to retry; None where the same command again does it.
    """
    for group in groups:
        again = f"producer retry {name} --code {group.code}" if name else "the same command again"
        if as_json:
            put_json(event="failures", **asdict(group), remedy=group.remedy, retry=again if name else None)
            continue
        say(f"{group.count:,} {group.code}, such as job {group.job_id}: {group.message}")
        say(f"  remedy: {group.remedy}")
        say(f"  then: {again}")
