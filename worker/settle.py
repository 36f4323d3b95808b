"""Writes how a run ended: a terminal state, or back to the queue, and when.

Redis may be away just then. A run's end must not be lost to that, so it is written again and again until Redis answers
or the process has to leave.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from random import uniform
from threading import Event
from typing import TypeVar

from jobs.errors import BrokerUnavailable, Cancelled, EditFailure, ErrorCode, HandBack, Outage, RetryJob, StopWorker
from jobs.errors import LeaseLost as LeaseLostError
from jobs.ledger import Claim, Ledger, Spent
from jobs.queue import EditQueue
from jobs.schema import ErrorInfo, JobState, Outcome, Timings
from worker.events import NO_CODE, EndNotWritten, Events, JobEnded, JobRequeued, LeaseLost
from worker.leases import Run
from worker.settings import Settings

T = TypeVar("T")

BACK_OFF_SECONDS = 2.0
"""Pause before the second run; it doubles with each further one, with jitter, up to `LONGEST_BACK_OFF_SECONDS`."""

LONGEST_BACK_OFF_SECONDS = 60.0

PERSIST_SECONDS = (0.2, 0.5, 1, 2, 5)
"""Pauses while Redis is away and a run's end has to be written; the last one repeats."""


class Settlement:
    """Ends runs in the ledger."""

    def __init__(self, settings: Settings, ledger: Ledger, queue: EditQueue, events: Events) -> None:
        self._settings = settings
        self._ledger = ledger
        self._queue = queue
        self._events = events
        self.must_leave = Event()
        """Set when the process has to end even though Redis is away."""

    def succeeded(self, run: Run, outcome: Outcome) -> None:
        """Write that the image is there.

        Raises:
            BrokerUnavailable: as `persist`.
        """
        self.persist(lambda: self._finish(run, JobState.SUCCEEDED, outcome))

    def failed(self, run: Run, failure: EditFailure) -> None:
        """Write how a run without an image ended: dropped, handed back, tried again later, cancelled or failed.

        Raises:
            BrokerUnavailable: as `persist`.
        """
        self.persist(lambda: self._settle(run, failure))

    def persist(self, write: Callable[[], T]) -> T:
        """Repeat a call of the ledger until Redis answers.

        Raises:
            BrokerUnavailable: Redis is away while the process has to leave; the job's lease will run out instead.
        """
        for pause in chain(PERSIST_SECONDS, repeat(PERSIST_SECONDS[-1])):
            try:
                return write()
            except BrokerUnavailable as error:
                if self.must_leave.wait(pause):
                    raise
                self._events.send(EndNotWritten(pause, str(error)))
        raise AssertionError("unreachable: the pauses never end")

    def _settle(self, run: Run, failure: EditFailure) -> None:
        pause = pause_before_next_run(failure, run.claim, self._settings)
        if isinstance(failure, LeaseLostError):
            self._events.send(LeaseLost(run.job_id, run.claim.attempt))
        elif isinstance(failure, HandBack):
            self._requeue(run, failure, 0, spent="nothing")
        elif pause is not None:
            spent: Spent = "outage" if isinstance(failure, Outage) else "attempt"
            self._requeue(run, failure, pause * uniform(0.75, 1.25), spent)
        else:
            state = JobState.CANCELLED if isinstance(failure, Cancelled) else JobState.FAILED
            error = ErrorInfo(code=failure.code, message=failure.message, retryable=failure.retryable)
            self._finish(run, state, Outcome(timings=Timings(**run.timings), error=error))

    def _finish(self, run: Run, state: JobState, outcome: Outcome) -> None:
        """Write the terminal state, unless the job belongs to another run by now."""
        claim = run.claim
        ended = self._ledger.finish(run.job_id, claim.token, state, outcome)
        if ended is None:
            self._events.send(LeaseLost(run.job_id, claim.attempt))
            return
        self._say_ended(run, ended, outcome.error.code if outcome.error else NO_CODE)

    def _requeue(self, run: Run, failure: EditFailure, delay_seconds: float, spent: Spent) -> None:
        """Give the job back, unless it belongs to another run by now or was to be cancelled meanwhile."""
        answer = self._ledger.requeue(run.job_id, run.claim.token, failure.code, delay_seconds, spent)
        if answer == "lost":
            self._events.send(LeaseLost(run.job_id, run.claim.attempt))
            return
        if answer == "cancelled":
            self._say_ended(run, JobState.CANCELLED, ErrorCode.CANCELLED)
            return
        self._events.send(JobRequeued(run.job_id, run.claim.attempt, failure.code, delay_seconds))
        if answer == "queued":
            self._queue.send([run.job_id])

    def _say_ended(self, run: Run, state: JobState, code: str) -> None:
        claim = run.claim
        self._events.send(JobEnded(run.job_id, claim.attempt, run.seconds, code, state, claim.queued_seconds))


def pause_before_next_run(failure: EditFailure, claim: Claim, settings: Settings) -> float | None:
    """Return the seconds, before jitter, until the job runs again after this failure; None: it has to end.

    Runs that a store or a host made fail are counted apart, by what the pauses between them add up to: a few minutes
    without a store must not fail the jobs that meet them, as a job that fails by itself should after a few attempts.
    """
    if isinstance(failure, Outage):
        pauses = [_back_off(number) for number in range(claim.outages + 1)]
        return pauses[-1] if sum(pauses) <= settings.outage_seconds else None
    if not isinstance(failure, RetryJob | StopWorker) or claim.attempt >= settings.max_attempts:
        return None
    return 0.0 if isinstance(failure, StopWorker) else _back_off(claim.attempt - 1)


def _back_off(number: int) -> float:
    return min(LONGEST_BACK_OFF_SECONDS, BACK_OFF_SECONDS * 2.0 ** min(number, 10))
