"""The ledger: one record per job in Redis, the truth about its life.

    submit --> queued --claim--> running --finish--> succeeded | failed | cancelled
                 ^                  |
                 |<--- requeue -----|  (back-off, or a draining worker)
                 '<--- expire ------'  (the worker went silent; after the last attempt: failed)

    failed | cancelled --retry--> queued   (by hand only: another round of attempts under the same id)

Every arrow is one script of `lua/`, hence atomic. A message in the queue is only a hint that a job waits; whoever gets
it must `claim` the job, and of two claims one is refused. A claim is a lease: whoever does not `renew` it in time loses
the job, and what it writes later is refused by its token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from typing import Any, Literal, TypeVar, cast
from uuid import uuid4

from redis import Redis

from jobs.connection import connect, redis_errors
from jobs.errors import ErrorCode, JobNotFound, RejectJob
from jobs.ledger.record import JobRecord, Progress, parse_record
from jobs.schema import EditJob, ErrorInfo, JobState, Outcome, parse_job, salvage_job
from jobs.settings import Settings

SCRIPTS = (
    *("submit", "claim", "renew", "finish", "requeue", "cancel", "retry"),
    *("take_turn", "expire", "promote", "resend", "take_callbacks", "settle_callback", "revise_callback"),
)
PIPELINE_LENGTH = 500
"""Jobs sent to Redis in one go: long enough to hide the round trip, short enough to stay under a megabyte."""

MICROSECONDS = 1_000_000

T = TypeVar("T")

Lease = Literal["held", "cancel", "lost"]
Requeued = Literal["queued", "delayed", "cancelled", "lost"]
Spent = Literal["attempt", "outage", "nothing"]


@dataclass(frozen=True)
class Submission:
    """What became of one submitted job.

    `conflict` means that the id is taken by a job that asks for something else; `full` that the queue has reached its
    bound.
    """

    job_id: str
    verdict: Literal["created", "exists", "conflict", "full"]
    detail: str


@dataclass(frozen=True)
class Claim:
    """A lease on one job: proof, by its token, that this worker may run and end it.

    `outages` is how often a store or a host was not there for it so far.
    """

    job_id: str
    token: str
    attempt: int
    outages: int
    queued_seconds: float
    job_json: str

    @cached_property
    def job(self) -> EditJob:
        """The job itself.

        Raises:
            RejectJob: a Celery client sent something that is not a job.
        """
        return parse_job(json.loads(self.job_json))


@dataclass(frozen=True)
class Refusal:
    """Why a job could not be claimed: its state, `delayed`, or `unknown`."""

    reason: str


def _failure(code: ErrorCode, message: str, retryable: bool = False) -> str:
    return Outcome(error=ErrorInfo(code=code, message=message, retryable=retryable)).model_dump_json()


CANCELLED = _failure(ErrorCode.CANCELLED, "cancelled on request")


class Ledger:
    """Reads and changes the records of jobs.

    Args:
        redis: a client that decodes responses.
        prefix: start of every key.
        retention_seconds: how long an ended job is kept.
        clock: microseconds since 1970, for tests; None uses the clock of the Redis server, the only one all share.

    Every method raises `BrokerUnavailable` when Redis does not answer.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = "dg:",
        retention_seconds: float = 7 * 86400,
        clock: Callable[[], int] | None = None,
    ) -> None:
        self.redis = redis
        self.prefix = prefix
        self._retention_us = int(retention_seconds * MICROSECONDS)
        self._clock = clock or (lambda: 0)
        self._scripts = {name: redis.register_script(_source(name)) for name in SCRIPTS}

    @classmethod
    def from_settings(cls, settings: Settings) -> Ledger:
        return cls(connect(settings.redis_url), settings.key_prefix, settings.retention_seconds)

    # The life of a job

    def submit(self, jobs: Iterable[EditJob], output_root: str, max_queued: int = 0) -> Iterator[Submission]:
        """Accept jobs, each at most once; the caller then sends the messages of those that were created.

        Args:
            output_root: URI of the folder for jobs that name no output.
            max_queued: refuse when this many jobs wait; 0 means no bound.
        Yields:
            One submission per job, in order, as each pipeline of `PIPELINE_LENGTH` jobs is accepted.
        """
        for chunk in chunks(jobs, PIPELINE_LENGTH):
            rows = [
                _submit_arguments(job, job.model_dump_json(), job.completed(output_root).model_dump_json(), max_queued)
                for job in chunk
            ]
            for job, (verdict, detail) in zip(chunk, self.run_scripts("submit", rows), strict=True):
                yield Submission(job.id, verdict, detail)

    def adopt(self, job_id: str, raw: Any, output_root: str) -> Submission:
        """Accept what a plain Celery client put into a message, even when it is not a valid job.

        What is wrong with it comes out when it is claimed, and is then reported like any other failure.
        """
        try:
            return next(self.submit([parse_job(raw)], output_root))
        except RejectJob:
            as_sent = json.dumps(raw)
            verdict, detail = self.run_script(
                "submit", *_submit_arguments(salvage_job(raw, job_id), as_sent, as_sent, 0)
            )
            return Submission(job_id, verdict, detail)

    def claim(self, job_id: str, worker: str, lease_seconds: float, token: str | None = None) -> Claim | Refusal:
        """Take a queued job for one run, which counts as an attempt."""
        token = token or uuid4().hex
        answer = self.run_script("claim", job_id, worker, token, int(lease_seconds * MICROSECONDS))
        if not answer or answer[0] != "claimed":
            return Refusal(answer[0] if answer else "unknown")
        _, job, attempts, outages, queued_at, now = answer
        waited = max(0, int(now) - int(queued_at)) / MICROSECONDS  # the clock may have been set back
        return Claim(job_id, token, int(attempts), int(outages), waited, job)

    def renew(self, job_id: str, token: str, lease_seconds: float, progress: Progress | None = None) -> Lease:
        """Keep the lease and note the progress; `cancel` means held, but the user wants the job to end."""
        noted = json.dumps(asdict(progress)) if progress else ""
        lease_us = int(lease_seconds * MICROSECONDS)
        return cast(Lease, self.run_script("renew", job_id, token, lease_us, noted))

    def finish(self, job_id: str, token: str, state: JobState, outcome: Outcome) -> JobState | None:
        """Give a running job its terminal state and, in the same change, its callback.

        Returns:
            The state that the job has got: a cancel that came before this call wins. None when the lease is lost.
        """
        reason = outcome.error.code if outcome.error else state
        ended = self.run_script("finish", job_id, token, state, outcome.model_dump_json(), reason, CANCELLED)
        return JobState(ended) if ended else None

    def requeue(
        self, job_id: str, token: str, reason: str, delay_seconds: float = 0, spent: Spent = "attempt"
    ) -> Requeued:
        """Give a running job back, or end it if it was to be cancelled; after `queued` the caller sends its message.

        Args:
            delay_seconds: back-off before the job may run again.
            spent: what the run used up: an attempt, patience with an outage, or nothing when a worker drains.
        """
        delay_us = int(delay_seconds * MICROSECONDS)
        return cast(Requeued, self.run_script("requeue", job_id, token, delay_us, spent, reason, CANCELLED))

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job and return its state before: queued ends at once, running within a step, ended stays as it is.

        Raises:
            JobNotFound: no such job.
        """
        state = self.run_script("cancel", job_id, CANCELLED)
        if not state:
            raise JobNotFound(f"no job {job_id!r} in the ledger")
        return JobState(state)

    def retry(self, job_id: str) -> JobState:
        """Open a failed or cancelled job again and return its state before; any other job stays as it is.

        Its attempts start at 0 and its history goes on. If it was failed or cancelled the caller sends its message.

        Raises:
            JobNotFound: no such job.
        """
        answer = self.run_script("retry", job_id)
        if not answer:
            raise JobNotFound(f"no job {job_id!r} in the ledger")
        return JobState(answer[0])

    def retry_batch(self, batch: str, codes: Collection[ErrorCode] = ()) -> Iterator[list[str]]:
        """Open a batch's failed jobs again, page by page; the caller sends the messages of each page.

        Args:
            codes: only jobs with one of these errors; none means every failed one, but no cancelled one.
        Raises:
            JobNotFound: no such batch.
        """
        self.batch_counts(batch)
        wanted = codes or set(ErrorCode) - {ErrorCode.CANCELLED}
        for page in chunks(self.batch_job_ids(batch), PIPELINE_LENGTH):
            answers = self.run_scripts("retry", ([job_id, *wanted] for job_id in page))
            yield [job_id for job_id, answer in zip(page, answers, strict=True) if answer and answer[1]]

    # Reading

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
        """Read jobs in one round trip; None where there is none."""
        with redis_errors(self.redis), self.redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self.key("job", job_id))
            found = zip(job_ids, pipeline.execute(), strict=True)
        return [parse_record(job_id, fields) if "job" in fields else None for job_id, fields in found]

    def position(self, job_id: str) -> int | None:
        """How many jobs will be taken before this one; None when it does not wait in the queue."""
        with redis_errors(self.redis):
            return cast("int | None", self.redis.zrank(self.key("queued"), job_id))

    def batch_counts(self, batch: str) -> dict[JobState, int]:
        """Count a batch's jobs by state.

        Raises:
            JobNotFound: no such batch.
        """
        with redis_errors(self.redis):
            counts = self.redis.hgetall(self.key("batch", batch))
        if not counts:
            raise JobNotFound(f"no batch {batch!r} in the ledger")
        return {state: int(counts.get(state, 0)) for state in JobState}

    def batch_job_ids(self, batch: str) -> Iterator[str]:
        """Ids of a batch's jobs in the order of their rows, read in pages."""
        start = 0
        while True:
            with redis_errors(self.redis):
                key = self.key("batch", batch, "jobs")
                page = cast("list[str]", self.redis.zrange(key, start, start + PIPELINE_LENGTH - 1))
            yield from page
            if len(page) < PIPELINE_LENGTH:
                return
            start += PIPELINE_LENGTH

    def waiting(self) -> int:
        """How many jobs wait, in back-off or not: what a bound of the queue is compared with."""
        counts = self.queue_counts()
        return counts["queued"] + counts["delayed"]

    def queue_counts(self) -> dict[str, int]:
        """How many jobs are `queued`, `delayed` (in back-off) and `running`, and how many `callbacks` are due."""
        with redis_errors(self.redis), self.redis.pipeline(transaction=False) as pipeline:
            for name in ("queued", "delayed", "running", "outbox"):
                pipeline.zcard(self.key(name))
            queued, delayed, running, outbox = pipeline.execute()
        return {"queued": queued, "delayed": delayed, "running": running, "callbacks": outbox}

    # For the reconciler

    def take_turn(self, pause_seconds: float) -> tuple[bool, int]:
        """Ask for the next turn of all reconcilers; whether it is given, and the ledger's time in microseconds.

        Moments that lie too far ahead, because the clock of Redis was set back since the last turn, are put right.

        Args:
            pause_seconds: between two turns of anybody.
        """
        is_given, now = self.run_script("take_turn", int(pause_seconds * MICROSECONDS))
        return bool(is_given), int(now)

    def expire(self, max_attempts: int, until_us: int = 0, limit: int = 1000) -> tuple[list[str], list[str]]:
        """Take jobs from workers that went silent; returns the ids to send again and the ids that ended.

        Args:
            until_us: latest end of a lease that counts as silence, lest the clock jump after the caller looked; 0: now.
        """
        exhausted = _failure(
            ErrorCode.WORKER_LOST, f"the worker died or went silent in each of {max_attempts} attempts", retryable=True
        )
        again, ended = self.run_script("expire", limit, max_attempts, exhausted, CANCELLED, until_us)
        return again, ended

    def promote(self, limit: int = 1000) -> list[str]:
        """Move jobs whose back-off is over to the queue; returns the ids to send."""
        return cast("list[str]", self.run_script("promote", limit))

    def oldest_queued(self, limit: int, sent_before_us: float | None = None) -> list[str]:
        """Ids of the jobs that were sent longest ago, up to a moment in microseconds."""
        with redis_errors(self.redis):
            before = "+inf" if sent_before_us is None else sent_before_us
            return cast("list[str]", self.redis.zrangebyscore(self.key("queued"), "-inf", before, 0, limit))

    def sent_at(self, job_ids: Sequence[str]) -> list[float | None]:
        """When the message of each job was last sent, microseconds; None for a job that does not wait."""
        if not job_ids:
            return []
        with redis_errors(self.redis):
            return self.redis.zmscore(self.key("queued"), list(job_ids))

    def resend(self, job_ids: Sequence[str]) -> list[str]:
        """Note that messages are about to be sent again; returns the ids of those jobs that still wait."""
        return cast("list[str]", self.run_script("resend", *job_ids)) if job_ids else []

    def now_us(self) -> int:
        """The ledger's time in microseconds."""
        with redis_errors(self.redis):
            seconds, microseconds = self.redis.time()
            return self._clock() or seconds * MICROSECONDS + microseconds

    # For those parts of the ledger that have a file of their own

    def key(self, *parts: str) -> str:
        """The key in Redis of this name."""
        return self.prefix + ":".join(parts)

    def run_script(self, name: str, *arguments: Any) -> Any:
        """Run one script of `SCRIPTS`; what it answers."""
        with redis_errors(self.redis):
            return self._scripts[name](*self._call(arguments))

    def run_scripts(self, name: str, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Run one script for each row of arguments in one round trip; what they answer."""
        with redis_errors(self.redis), self.redis.pipeline(transaction=False) as pipeline:
            for row in rows:
                self._scripts[name](*self._call(row), client=pipeline)
            return pipeline.execute()

    def _call(self, arguments: Sequence[Any]) -> tuple[list[str], list[Any]]:
        return [self.prefix], [self._clock(), self._retention_us, *arguments]


def _submit_arguments(job: EditJob, asked: str, completed: str, max_queued: int) -> list[str | int]:
    digest = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    events = ",".join(job.callback.events) if job.callback else ""
    return [job.id, completed, digest, job.batch or "", events, max_queued]


def _source(name: str) -> str:
    folder = resources.files("jobs.ledger") / "lua"
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
