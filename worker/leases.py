"""The runs of this process: their leases, their progress, and the requests to end them.

A run is renewed while its process lives and its work moves. What ends it early - cancel, deadline, drain, a lost
lease - is noted on the run and raised at its next check, which is between two steps at the latest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from jobs.errors import BrokerRefused, Cancelled, EditFailure, ErrorCode, HandBack, LeaseLost, RejectJob
from jobs.ledger import Claim, Ledger, Progress

RENEW_SECONDS = 0.5
"""How often a lease is renewed, progress noted and a cancel noticed."""

ENCODING, SAMPLING = "encoding", "sampling"
BEFORE_THE_GPU = ("starting", "fetching", "decoding", "waiting")


class Run:
    """One attempt at one job, as seen by the thread that works on it and by the keeper of leases.

    Args:
        timeout_seconds: of its own work; the clock stands still while it waits for its neighbours.
        clock: seconds that only grow.
    """

    def __init__(self, claim: Claim, timeout_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.claim = claim
        self._clock = clock
        self._started_at = self._moved_at = self._began_at = clock()  # the last one later by what it has waited
        self._stopped_at: float | None = None
        self.timings: dict[str, float] = {"queued": claim.queued_seconds}
        self._timeout_seconds = timeout_seconds
        self._progress = Progress("starting")
        self._abort: EditFailure | None = None

    @property
    def job_id(self) -> str:
        return self.claim.job_id

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def is_on_gpu(self) -> bool:
        """Whether the engine is at work on it; before the first step it encodes."""
        return self._progress.stage in (ENCODING, SAMPLING)

    @property
    def seconds(self) -> float:
        """Time since its claim."""
        return self._clock() - self._started_at

    @property
    def still_seconds(self) -> float:
        """Time since its last step, or the beginning of its stage."""
        return self._clock() - self._moved_at

    def limit(self, timeout_seconds: float | None) -> None:
        """Shorten its time to what the job itself allows."""
        if timeout_seconds is not None:
            self._timeout_seconds = min(self._timeout_seconds, timeout_seconds)

    def abort(self, reason: EditFailure) -> None:
        """Ask the run to end at its next check; the first reason stays."""
        self._abort = self._abort or reason

    def check(self) -> None:
        """Raise the reason to end, if there is one."""
        stopped_at = self._stopped_at
        worked = (self._clock() if stopped_at is None else stopped_at) - self._began_at
        if self._abort is None and worked > self._timeout_seconds:
            self._abort = RejectJob(
                ErrorCode.DEADLINE_EXCEEDED, f"the job ran longer than its {self._timeout_seconds:g} s"
            )
        if self._abort is not None:
            raise self._abort

    @contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """Let the time of the block not count as the job's: it waits for what others hold."""
        self._stopped_at = self._clock()
        try:
            yield
        finally:
            self._began_at += self._clock() - self._stopped_at
            self._stopped_at = None

    @contextmanager
    def stage(self, name: str, timing: str | None = None) -> Iterator[None]:
        """Work on one stage: noted as progress and, when `timing` is given, its seconds added under that name."""
        self.check()
        self._move(Progress(name))
        start = self._clock()
        yield
        if timing:
            self.timings[timing] = self.timings.get(timing, 0.0) + self._clock() - start

    def on_step(self, step: int, total_steps: int) -> None:
        """Note a sampling step and end the run if that was asked for."""
        self._move(Progress(SAMPLING, step, total_steps))
        self.check()

    def _move(self, progress: Progress) -> None:
        self._progress = progress
        self._moved_at = self._clock()


class LeaseKeeper:
    """Renews the leases of this process's runs.

    Args:
        stall_seconds: a step longer than this means a hung device.
        on_stall: called then, instead of renewing; it should end the process.
    """

    def __init__(
        self, ledger: Ledger, lease_seconds: float, stall_seconds: float, on_stall: Callable[[Run], None]
    ) -> None:
        self._ledger = ledger
        self._lease_seconds = lease_seconds
        self._stall_seconds = stall_seconds
        self._on_stall = on_stall
        self._runs: dict[str, Run] = {}
        self._lock = Lock()
        self._is_draining = False

    @property
    def runs(self) -> list[Run]:
        with self._lock:
            return list(self._runs.values())

    @contextmanager
    def keep(self, run: Run) -> Iterator[Run]:
        """Keep the run's lease for the length of the block."""
        with self._lock:
            self._runs[run.claim.token] = run
            if self._is_draining:
                run.abort(HandBack())
        try:
            yield run
        finally:
            with self._lock:
                del self._runs[run.claim.token]

    def renew_all(self) -> None:
        """Renew every lease and pass on what the ledger answers.

        Raises:
            BrokerUnavailable: Redis does not answer; the runs go on, and whether they may finish is decided at the end.
        """
        for run in self.runs:
            if run.is_on_gpu and run.still_seconds > self._stall_seconds:
                self._on_stall(run)
                continue
            try:
                answer = self._ledger.renew(run.job_id, run.claim.token, self._lease_seconds, run.progress)
            except BrokerRefused:  # its record is damaged; the others' leases must not end with it
                answer = "lost"
            if answer == "cancel":
                run.abort(Cancelled())
            elif answer == "lost":
                run.abort(LeaseLost())

    def drain(self, include_sampling: bool) -> None:
        """Ask runs to go back to the queue: those that do not hold the GPU yet or, at the end of patience, all."""
        with self._lock:
            self._is_draining = True
            for run in self._runs.values():
                if include_sampling or run.progress.stage in BEFORE_THE_GPU:
                    run.abort(HandBack())
