"""The client for services: submit edits, follow them, cancel them.

client = Client()
job_id = client.submit(EditJob(image="s3://photos/cat.png", prompt="make it snow"))
result = client.wait(job_id, timeout_seconds=120)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

from jobs.errors import ErrorCode, JobNotFound
from jobs.ledger import PIPELINE_LENGTH, JobRecord, Ledger, Submission
from jobs.queue import EditQueue
from jobs.registry import WorkerRegistry
from jobs.schema import EditJob, EditResult, JobState
from jobs.settings import BrokerSettings, load_settings
from jobs.trace_context import current_traceparent
from producer.errors import JobConflict, QueueFull
from producer.following import Following, pauses

FULL = ("full", "tenant_full")
"""Verdicts on jobs that may be submitted again later."""


class Client:
    """Talks to the ledger and the queue; one instance serves all threads of a program.

    Args:
        broker_url: the Redis that the workers use; default: the setting, `DG_BROKER_URL`.
        settings: read from the environment when absent.

    Nothing is connected until a method needs it. Every method may raise `BrokerError`.

    Attributes:
        settings, ledger, registry: what the methods work with, for whoever needs more than they give.
    """

    def __init__(self, broker_url: str | None = None, settings: BrokerSettings | None = None) -> None:
        settings = settings or load_settings(BrokerSettings)
        if broker_url is not None:
            settings = load_settings(
                BrokerSettings, **{**settings.model_dump(exclude_unset=True), "broker_url": broker_url}
            )
        self.settings = settings
        self.ledger = Ledger.from_settings(settings)
        self.registry = WorkerRegistry(self.ledger.redis, settings.key_prefix)
        self._queue = EditQueue(self.ledger.redis)

    def submit(self, job: EditJob) -> str:
        """Queue one job and return its id; a job that is there already is left as it is.

        Raises:
            JobConflict: the id belongs to a job that asks for something else.
            QueueFull: as many jobs wait as may wait, in all or of this tenant.
        """
        (job_id,) = self.submit_together([job])
        return job_id

    def submit_together(self, jobs: Sequence[EditJob]) -> list[str]:
        """Queue a few jobs, all of them or none, and return their ids; those that are there already stay as they are.

        Args:
            jobs: with different ids.
        Raises:
            JobConflict: one of the ids belongs to a job that asks for something else.
            QueueFull: as many jobs wait as may wait, in all or of this tenant.
        """
        submissions = self.ledger.submit_together(
            self._traced(jobs), self.settings.output_uri, self.settings.max_queued, self.settings.max_queued_per_tenant
        )
        for refused in submissions:
            if refused.verdict == "conflict":
                raise JobConflict(f"job {refused.job_id!r} exists and asks for something else; use another id")
            if refused.verdict in FULL:
                raise QueueFull(f"{self.describe_full(refused)}; submit again later")
        self._send_new(submissions)
        return [submission.job_id for submission in submissions]

    def submit_many(self, jobs: Iterable[EditJob], wait_for_room: bool = False) -> Iterator[Submission]:
        """Queue jobs as they come and tell what became of each, in order.

        Jobs go in by the chunk, each chunk's messages right after it was accepted. Nothing happens until the result is
        iterated; whoever stops, or is killed, can submit the same jobs again.

        Args:
            wait_for_room: instead of the verdicts `full` and `tenant_full`, wait until there is room and go on, however
                long it takes; within one chunk, jobs that exist already are then yielded before the new ones.
        """
        for step in self.submission_steps(jobs, wait_for_room):
            if isinstance(step, float):
                time.sleep(step)
            else:
                yield from step

    def submission_steps(self, jobs: Iterable[EditJob], wait_for_room: bool) -> Iterator[list[Submission] | float]:
        """The work of `submit_many` step by step: submissions, or seconds to sleep before the next step."""
        remaining = iter(jobs)
        while chunk := list(islice(remaining, PIPELINE_LENGTH)):
            submissions = self._submit_chunk(chunk)
            waits = pauses()
            while wait_for_room and (full := {item.job_id for item in submissions if item.verdict in FULL}):
                yield [item for item in submissions if item.verdict not in FULL]
                yield next(waits)
                chunk = [job for job in chunk if job.id in full]
                submissions = self._submit_chunk(chunk)
            yield submissions

    def describe_full(self, submission: Submission) -> str:
        """Say which bound refused a job, and how many wait."""
        if submission.verdict == "tenant_full":
            return f"too many jobs of this tenant wait ({submission.detail} of {self.settings.max_queued_per_tenant})"
        return f"queue full ({submission.detail} of {self.settings.max_queued})"

    def _submit_chunk(self, jobs: list[EditJob]) -> list[Submission]:
        submissions = list(
            self.ledger.submit(
                self._traced(jobs),
                self.settings.output_uri,
                self.settings.max_queued,
                self.settings.max_queued_per_tenant,
            )
        )
        self._send_new(submissions)
        return submissions

    def _traced(self, jobs: Sequence[EditJob]) -> list[EditJob]:
        """The jobs under the span of whoever submits them, where there is one."""
        traceparent = current_traceparent()
        if traceparent is None:
            return list(jobs)
        return [job if job.traceparent else job.model_copy(update={"traceparent": traceparent}) for job in jobs]

    def _send_new(self, submissions: Iterable[Submission]) -> None:
        # Of a job that exists a message was sent before; should it be lost, a worker's reconciler sends it again.
        self._queue.send(item.job_id for item in submissions if item.verdict == "created")

    def get(self, job_id: str) -> JobRecord:
        """Everything that is known about a job.

        Raises:
            JobNotFound: no such job.
        """
        return self.ledger.get(job_id)

    def wait(self, job_id: str, timeout_seconds: float | None = None) -> EditResult:
        """Wait until a job has ended, for ever by default, and return how; looks at it once a second at last.

        Raises:
            JobNotFound: no such job.
            TimeoutError: it has not ended in time; it goes on, and may be waited for again.
        """
        following = Following(timeout_seconds)
        while not (record := self.get(job_id)).state.is_terminal:
            time.sleep(following.pause(record))
        return record.result

    def events(self, job_id: str, timeout_seconds: float | None = None) -> Iterator[JobRecord]:
        """Follow a job: its record now, then at every change of state or progress; the last one has ended.

        Raises:
            JobNotFound: no such job.
            TimeoutError: it has not ended in time; it goes on.
        """
        following = Following(timeout_seconds, closely=True)
        while True:
            record = self.get(job_id)
            if following.is_news(record):
                yield record
            if record.state.is_terminal:
                return
            time.sleep(following.pause(record))

    def cancel(self, job_id: str) -> JobState:
        """Cancel a job and return its state before: queued ends at once, running within a step, ended stays as it is.

        Raises:
            JobNotFound: no such job.
        """
        return self.ledger.cancel(job_id)

    def cancel_batch(self, batch: str) -> dict[JobState, int]:
        """Cancel every job of a batch; returns how many were in which state before.

        Raises:
            JobNotFound: no such batch.
        """
        self.ledger.batch_counts(batch)
        before: Counter[JobState] = Counter()
        for job_id in self.ledger.batch_job_ids(batch):
            with suppress(JobNotFound):  # a job that ended long ago is forgotten before its batch
                before[self.ledger.cancel(job_id)] += 1
        return {state: before[state] for state in JobState}

    def retry(self, job_id: str) -> JobState:
        """Queue a failed or cancelled job again and return its state before; any other job stays as it is.

        It keeps its id, its seed and its history, and has all its attempts again. A full queue does not refuse it.

        Raises:
            JobNotFound: no such job.
        """
        before = self.ledger.retry(job_id)
        if before in (JobState.FAILED, JobState.CANCELLED):
            self._queue.send([job_id])
        return before

    def retry_batch(self, batch: str, codes: Collection[ErrorCode] = ()) -> int:
        """Queue the failed jobs of a batch again; returns how many.

        Args:
            codes: only those with one of these errors; `cancelled` is meant only when it is named.
        Raises:
            JobNotFound: no such batch.
        """
        return sum(self._queue.send(page) for page in self.ledger.retry_batch(batch, codes))

    def status(self, batch: str) -> dict[JobState, int]:
        """Number of jobs of a batch in each state.

        Raises:
            JobNotFound: no such batch.
        """
        return self.ledger.batch_counts(batch)
