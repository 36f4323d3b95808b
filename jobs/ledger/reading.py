"""Reading of jobs, batches and the queue; nothing here changes a record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from jobs.connection import redis_errors
from jobs.errors import JobNotFound
from jobs.ledger.record import JobRecord, parse_record
from jobs.ledger.scripts import MICROSECONDS, PIPELINE_LENGTH, Scripts
from jobs.schema import JobState


@dataclass(frozen=True)
class QueueAges:
    """How long the queue's head has been waiting, and by how much the oldest callback is late; 0 for none."""

    oldest_queued_seconds: float
    callback_overdue_seconds: float


@dataclass(frozen=True)
class BatchSummary:
    """A batch, the time of its first job, and its jobs by state."""

    name: str
    submitted_at: datetime
    counts: dict[JobState, int]


class JobReading:
    """Reads the records of jobs and the indexes over them."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts

    def get(self, job_id: str) -> JobRecord:
        """Read one job.

        Raises:
            JobNotFound: no such job.
        """
        record = self.get_many([job_id])[0]
        if record is None:
            raise JobNotFound(f"no job {job_id!r} in the ledger")
        return record

    def get_many(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Read jobs in two round trips; None for each id that is unknown."""
        with redis_errors(self.scripts.redis), self.scripts.redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self.scripts.key("job", job_id))
            records: list[dict[str, str]] = pipeline.execute()
            told = [fields for fields in records if "webhook" in fields]
            for fields in told:
                pipeline.hget(self.scripts.key("callback", fields["webhook"]), "state")
            for fields, state in zip(told, pipeline.execute(), strict=True):
                fields["callback"] = state or fields["callback"]
        found = zip(job_ids, records, strict=True)
        return [parse_record(job_id, fields) if "job" in fields else None for job_id, fields in found]

    def position(self, job_id: str) -> int | None:
        """Number of jobs that will be taken before this one, as the queue stands; None when it is not queued."""
        return cast("int | None", self.scripts.run("position", job_id))

    def batch_counts(self, batch: str) -> dict[JobState, int]:
        """Count a batch's jobs by state.

        Raises:
            JobNotFound: no such batch.
        """
        with redis_errors(self.scripts.redis):
            counts = self.scripts.redis.hgetall(self.scripts.key("batch", batch))
        if not counts:
            raise JobNotFound(f"no batch {batch!r} in the ledger")
        return {state: int(counts.get(state, 0)) for state in JobState}

    def batch_job_ids(self, batch: str) -> Iterator[str]:
        """Ids of a batch's jobs in the order of their rows, read in pages."""
        start = 0
        while True:
            with redis_errors(self.scripts.redis):
                key = self.scripts.key("batch", batch, "jobs")
                page = cast("list[str]", self.scripts.redis.zrange(key, start, start + PIPELINE_LENGTH - 1))
            yield from page
            if len(page) < PIPELINE_LENGTH:
                return
            start += PIPELINE_LENGTH

    def batches(self) -> Iterator[BatchSummary]:
        """Every batch with its counts, newest first, read in pages."""
        redis, key = self.scripts.redis, self.scripts.key
        start = 0
        while True:
            with redis_errors(redis), redis.pipeline(transaction=False) as pipeline:
                page = cast(
                    "list[tuple[str, float]]",
                    redis.zrange(key("batches"), start, start + PIPELINE_LENGTH - 1, desc=True, withscores=True),
                )
                for name, _ in page:
                    pipeline.hgetall(key("batch", name))
                found = pipeline.execute()
            for (name, submitted_us), counts in zip(page, found, strict=True):
                if counts:  # otherwise it is forgotten, and only its name is still there
                    submitted_at = datetime.fromtimestamp(submitted_us / MICROSECONDS, UTC)
                    yield BatchSummary(name, submitted_at, {state: int(counts.get(state, 0)) for state in JobState})
            if len(page) < PIPELINE_LENGTH:
                return
            start += PIPELINE_LENGTH

    def waiting(self) -> int:
        """Number of queued jobs, including jobs in back-off; `DG_MAX_QUEUED` bounds it."""
        counts = self.queue_counts()
        return counts["queued"] + counts["delayed"]

    def queue_counts(self) -> dict[str, int]:
        """Count the jobs that are `queued`, `delayed` (in back-off) and `running`, and the pending `callbacks`."""
        with redis_errors(self.scripts.redis), self.scripts.redis.pipeline(transaction=False) as pipeline:
            for name in ("queued", "delayed", "running", "outbox"):
                pipeline.zcard(self.scripts.key(name))
            queued, delayed, running, outbox = pipeline.execute()
        return {"queued": queued, "delayed": delayed, "running": running, "callbacks": outbox}

    def queue_ages(self) -> QueueAges:
        """Measure how long the oldest waiting job and the most overdue callback have been waiting."""
        scripts = self.scripts
        with redis_errors(scripts.redis), scripts.redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(scripts.key("queued"), 0, 0, withscores=True)
            pipeline.zrange(scripts.key("outbox"), 0, 0, withscores=True)
            queued, due = pipeline.execute()
        now_us = scripts.now_us()
        return QueueAges(
            oldest_queued_seconds=_seconds_between(queued[0][1] if queued else None, now_us),
            callback_overdue_seconds=_seconds_between(due[0][1] if due else None, now_us),
        )

    def tenant_counts(self) -> dict[str, dict[str, int]]:
        """Count the `queued` (back-off included) and `running` jobs of each tenant that has any; "" stands for none."""
        with redis_errors(self.scripts.redis), self.scripts.redis.pipeline(transaction=False) as pipeline:
            for state in ("queued", "running"):
                pipeline.hgetall(self.scripts.key("tenants", state))
            queued, running = pipeline.execute()
        return {
            tenant: {"queued": int(queued.get(tenant, 0)), "running": int(running.get(tenant, 0))}
            for tenant in sorted({*queued, *running})
        }


def _seconds_between(start_us: float | None, end_us: int) -> float:
    return 0.0 if start_us is None else max(0.0, (end_us - start_us) / MICROSECONDS)
