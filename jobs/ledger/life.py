"""The life of a job, from its submission to its end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, cast
from uuid import uuid4

from jobs.errors import ErrorCode, JobNotFound, Outage, RejectJob
from jobs.ledger.reading import JobReading
from jobs.ledger.record import CANCELLED, DAMAGED, Progress
from jobs.ledger.scripts import MICROSECONDS, PIPELINE_LENGTH, chunks
from jobs.schema import EditJob, JobState, Outcome, parse_job, salvage_job

JOBS_PER_CALL = 25
"""Jobs that one call of the script accepts, during which the ledger does nothing else: about a millisecond."""

CALL_CHARACTERS = 2**20
"""Of jobs as JSON in one call: Redis has the whole of it in memory at once, and images may travel inside of jobs."""

Lease = Literal["held", "cancel", "lost"]
Requeued = Literal["queued", "delayed", "cancelled", "lost"]
Spent = Literal["attempt", "outage", "nothing"]


@dataclass(frozen=True)
class Submission:
    """The ledger's answer to one submitted job.

    `conflict`: the id belongs to a job that asks for something else. `full`: the queue has reached its bound;
    `tenant_full`: the job's tenant has.
    """

    job_id: str
    verdict: Literal["created", "exists", "conflict", "full", "tenant_full"]
    detail: str


@dataclass(frozen=True)
class Claim:
    """A lease on one job; its token proves that this worker may run and end it.

    `outages` counts the runs so far that ended because a store or a host was unavailable. A suspect was being worked on
    when a worker was lost; it should run alone. An invalid job was no job when it was accepted.
    """

    job_id: str
    token: str
    attempt: int
    outages: int
    queued_seconds: float
    job_json: str
    is_suspect: bool = False
    is_invalid: bool = False

    @cached_property
    def job(self) -> EditJob:
        """The job, parsed.

        Raises:
            RejectJob: a Celery client sent something that is not a job, or was not for the worker that accepted it;
                or its record is damaged.
            Outage: a newer version accepted it, so a newer worker may run it.
        """
        try:
            raw = json.loads(self.job_json)
        except ValueError as error:
            raise RejectJob(ErrorCode.INTERNAL, DAMAGED) from error
        try:
            job = parse_job(raw)
        except RejectJob as error:
            if self.is_invalid:
                raise
            newer = f"accepted by a newer version than this worker's ({error.message}); it waits for a newer worker"
            raise Outage(error.code, newer) from error
        if self.is_invalid:  # it has no output and no seed: those are filled in when a job is accepted
            older = "a worker of an older version took it for no job; send it again under a new id"
            raise RejectJob(ErrorCode.INVALID_JOB, older)
        return job


@dataclass(frozen=True)
class Refusal:
    """The reason why no job could be claimed: the state of the job in question, `delayed`, or `unknown`."""

    reason: str


class JobLife(JobReading):
    """Moves jobs from state to state, one script for each arrow of the drawing in `jobs/ledger/ledger.py`."""

    def submit(
        self, jobs: Iterable[EditJob], output_root: str, max_queued: int = 0, max_queued_per_tenant: int = 0
    ) -> Iterator[Submission]:
        """Accept jobs, each at most once; the caller then sends the messages of the created ones.

        Args:
            output_root: URI of the folder for jobs that name no output.
            max_queued: refuse when this many jobs wait; 0 means no bound.
            max_queued_per_tenant: refuse a tenant's jobs when this many of them wait; 0 means no bound.
        Yields:
            One submission per job, in order, after each pipeline of `PIPELINE_LENGTH` jobs.
        """
        head = (max_queued, max_queued_per_tenant, 0, 0)
        for chunk in chunks(jobs, PIPELINE_LENGTH):
            calls = _calls(_job_arguments(job, output_root) for job in chunk)
            answers = chain.from_iterable(self.scripts.run_many("submit", ([*head, *call] for call in calls)))
            for job, (verdict, detail) in zip(chunk, answers, strict=True):
                yield Submission(job.id, verdict, detail)

    def submit_together(
        self, jobs: Sequence[EditJob], output_root: str, max_queued: int = 0, max_queued_per_tenant: int = 0
    ) -> list[Submission]:
        """Accept jobs in one step, all of them or none; the caller then sends the messages of the created ones.

        Args:
            jobs: with different ids; the ledger does nothing else meanwhile, so let them be few.
        Returns:
            One submission per job, in order; or, when one is refused, its submission alone.
        """
        if len({job.id for job in jobs}) < len(jobs):
            raise ValueError("jobs that are submitted together need different ids")
        arguments = [argument for job in jobs for argument in _job_arguments(job, output_root)]
        answers = self.scripts.run("submit", max_queued, max_queued_per_tenant, 0, 1, *arguments)
        for verdict, detail, *refused in answers:
            if refused:
                return [Submission(refused[0], verdict, detail)]
        return [Submission(job.id, verdict, detail) for job, (verdict, detail) in zip(jobs, answers, strict=True)]

    def adopt(self, job_id: str, raw: Any, output_root: str) -> Submission:
        """Accept the job in a message from a plain Celery client, even an invalid one.

        An invalid job fails when it is claimed, and is reported like any other failure.
        """
        try:
            return next(self.submit([parse_job(raw)], output_root))
        except RejectJob:
            as_sent = json.dumps(raw)
            arguments = _submit_arguments(salvage_job(raw, job_id), as_sent, as_sent)
            ((verdict, detail),) = self.scripts.run("submit", 0, 0, 1, 0, *arguments)
            return Submission(job_id, verdict, detail)

    def claim_best(
        self, worker: str, lease_seconds: float, token: str | None = None, hint: str = ""
    ) -> Claim | Refusal:
        """Take the best job that waits for one run, which counts as an attempt.

        First come jobs that a worker lost or handed back, then those of higher priority; within a priority tenants take
        turns, and a tenant's jobs go by age.

        Args:
            token: asked again with the same one, the ledger gives the same job.
            hint: id in the message that led here, whose state is the answer when no job waits.
        """
        return self._claim("", worker, lease_seconds, token, hint)

    def claim(self, job_id: str, worker: str, lease_seconds: float, token: str | None = None) -> Claim | Refusal:
        """Take this job, whatever its turn, for one run, which counts as an attempt."""
        return self._claim(job_id, worker, lease_seconds, token, job_id)

    def _claim(self, job_id: str, worker: str, lease_seconds: float, token: str | None, hint: str) -> Claim | Refusal:
        token = token or uuid4().hex
        answer = self.scripts.run("claim", job_id, worker, token, int(lease_seconds * MICROSECONDS), hint)
        if not answer or answer[0] != "claimed":
            return Refusal(answer[0] if answer else "unknown")
        _, claimed_id, job, attempts, outages, queued_at, now, is_suspect, is_invalid = answer
        waited = max(0, int(now) - int(queued_at)) / MICROSECONDS  # the clock may have been set back
        return Claim(claimed_id, token, int(attempts), int(outages), waited, job, is_suspect == "1", is_invalid == "1")

    def spend(self, job_id: str, token: str) -> bool:
        """Record that the run begins to work on its job; False when the lease is lost.

        From here on a worker that goes silent has spent the attempt; before, the job only waited in it.
        """
        return bool(self.scripts.run("spend", job_id, token) == "held")

    def renew(self, job_id: str, token: str, lease_seconds: float, progress: Progress | None = None) -> Lease:
        """Extend the lease and record the progress; `cancel` means held, but the user wants the job to end."""
        progress_json = json.dumps(asdict(progress)) if progress else ""
        lease_us = int(lease_seconds * MICROSECONDS)
        return cast(Lease, self.scripts.run("renew", job_id, token, lease_us, progress_json))

    def finish(self, job_id: str, token: str, state: JobState, outcome: Outcome) -> JobState | None:
        """Give a running job its terminal state and, in the same change, its callback.

        Returns:
            The state that the job now has: an earlier cancel wins. None when the lease is lost.
        """
        reason = outcome.error.code if outcome.error else state
        ended = self.scripts.run("finish", job_id, token, state, outcome.model_dump_json(), reason, CANCELLED)
        return JobState(ended) if ended else None

    def requeue(
        self, job_id: str, token: str, reason: str, delay_seconds: float = 0, spent: Spent = "attempt"
    ) -> Requeued:
        """Put a running job back, or end it if its cancel was requested; after `queued` the caller sends its message.

        Args:
            delay_seconds: back-off before the job may run again.
            spent: the run's cost: an attempt, a part of the time allowed for outages, or nothing when a worker drains.
        """
        delay_us = int(delay_seconds * MICROSECONDS)
        return cast(Requeued, self.scripts.run("requeue", job_id, token, delay_us, spent, reason, CANCELLED))

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job and return its previous state.

        A queued job ends at once, a running one within a step; an ended one stays as it is.

        Raises:
            JobNotFound: no such job.
        """
        state = self.scripts.run("cancel", job_id, CANCELLED)
        if not state:
            raise JobNotFound(f"no job {job_id!r} in the ledger")
        return JobState(state)

    def retry(self, job_id: str) -> JobState:
        """Queue a failed or cancelled job again and return its previous state; any other job stays as it is.

        Its attempts start at 0; its history is kept. The caller sends the message of a job that was queued again.

        Raises:
            JobNotFound: no such job.
        """
        answer = self.scripts.run("retry", job_id)
        if not answer:
            raise JobNotFound(f"no job {job_id!r} in the ledger")
        return JobState(answer[0])

    def retry_batch(self, batch: str, codes: Collection[ErrorCode] = ()) -> Iterator[list[str]]:
        """Queue a batch's failed jobs again, page by page; the caller sends the messages of each page.

        Args:
            codes: only jobs with one of these errors; empty: every failed job, but no cancelled one.
        Raises:
            JobNotFound: no such batch.
        """
        self.batch_counts(batch)
        wanted = codes or set(ErrorCode) - {ErrorCode.CANCELLED}
        for page in chunks(self.batch_job_ids(batch), PIPELINE_LENGTH):
            answers = self.scripts.run_many("retry", ([job_id, *wanted] for job_id in page))
            yield [job_id for job_id, answer in zip(page, answers, strict=True) if answer and answer[1]]


def _as_json(job: EditJob) -> str:
    # Without defaults: a field that nobody has set changes no digest, and stops no worker of a version without it.
    return job.model_dump_json(exclude_defaults=True)


def _as_asked(job: EditJob) -> str:
    # The same edit asked for again is the same job, although another request of the sender's asks for it.
    return _as_json(job.model_copy(update={"traceparent": None}))


def _job_arguments(job: EditJob, output_root: str) -> list[str]:
    return _submit_arguments(job, _as_asked(job), _as_json(job.completed(output_root)))


def _calls(of_jobs: Iterable[list[str]]) -> Iterator[list[str]]:
    """The arguments of jobs joined to those of calls of the script, a few jobs each."""
    call: list[str] = []
    jobs = size = 0
    for arguments in of_jobs:
        call += arguments
        jobs, size = jobs + 1, size + len(arguments[1])
        if jobs == JOBS_PER_CALL or size >= CALL_CHARACTERS:
            yield call
            call, jobs, size = [], 0, 0
    if call:
        yield call


def _submit_arguments(job: EditJob, asked: str, completed: str) -> list[str]:
    digest = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    events = ",".join(job.callback.events) if job.callback else ""
    return [job.id, completed, digest, job.batch or "", events, job.priority, job.tenant or ""]
