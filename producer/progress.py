"""Following a batch to its end: what is counted, and how it is shown on a terminal, in a log, or as JSON."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from jobs.errors import BrokerUnavailable
from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import JobState
from producer.client import Client
from producer.terminal import duration, people_console, put_json, say
from producer.waiting import no_worker_hint

POLL_SECONDS = 0.25
RATE_WINDOW_SECONDS = 60.0
"""The rate is that of the last minute, or of the last `FEWEST_ENDINGS` jobs: it follows workers that come and go."""
FEWEST_ENDINGS = 4
OVERDUE_ENDS = 2
"""Without an end for as long as this many should take, the rate falls."""
LINE_SECONDS = 5.0
JSON_SECONDS = 1.0
AWAY_POLL_SECONDS = 0.5
NO_WORKER_SECONDS = 5.0


@dataclass(frozen=True)
class Snapshot:
    """A batch at one moment; `rate` is in jobs per second.

    `has_begun`: since the watch started, a job has been running or has ended.
    """

    counts: dict[JobState, int]
    workers: tuple[WorkerInfo, ...]
    rate: float
    elapsed_seconds: float
    has_begun: bool = False

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.counts.items() if state.is_terminal)

    @property
    def failed(self) -> int:
        """Number of jobs that ended without an output image."""
        return self.counts[JobState.FAILED] + self.counts[JobState.CANCELLED]

    @property
    def seconds_left(self) -> float | None:
        """Time left at the present rate; None before a job has ended."""
        return (self.total - self.ended) / self.rate if self.rate else None

    def __str__(self) -> str:
        words = [
            f"{self.counts[JobState.QUEUED]:,} queued",
            f"{self.counts[JobState.RUNNING]:,} running",
            f"{self.counts[JobState.SUCCEEDED]:,} done",
            f"{self.failed:,} failed",
        ]
        if self.rate:
            words.append(f"{self.rate:.2g} jobs/s" if self.rate < 10 else f"{self.rate:,.0f} jobs/s")
        if self.seconds_left:
            words.append(f"{duration(self.seconds_left)} left")
        return ", ".join(words)


class Display(Protocol):
    """Something that shows snapshots."""

    def show(self, snapshot: Snapshot, is_last: bool) -> None: ...


class Bar:
    """A bar on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def show(self, snapshot: Snapshot, is_last: bool) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=snapshot.total)
        self._progress.update(
            self._task, total=snapshot.total, completed=snapshot.ended, description=_describe(snapshot)
        )


class Lines:
    """A line when something has changed, at most every `LINE_SECONDS`, for logs and pipes."""

    def __init__(self) -> None:
        self._said = ""
        self._said_at = -LINE_SECONDS

    def show(self, snapshot: Snapshot, is_last: bool) -> None:
        words = _describe(snapshot)
        is_due = snapshot.elapsed_seconds - self._said_at >= LINE_SECONDS
        if is_last or (is_due and words != self._said):
            say(f"[{duration(snapshot.elapsed_seconds)}] {words}")
            self._said, self._said_at = words, snapshot.elapsed_seconds


class JsonLines:
    """One object a second on stdout while something changes, for programs."""

    def __init__(self) -> None:
        self._last: dict[JobState, int] | None = None
        self._said_at = -JSON_SECONDS

    def show(self, snapshot: Snapshot, is_last: bool) -> None:
        is_due = snapshot.elapsed_seconds - self._said_at >= JSON_SECONDS
        if is_last or (is_due and snapshot.counts != self._last):
            left = snapshot.seconds_left
            put_json(
                event="progress",
                **snapshot.counts,
                workers=len(snapshot.workers),
                jobs_per_second=round(snapshot.rate, 3),
                seconds_left=None if left is None else round(left),
            )
            self._last, self._said_at = snapshot.counts, snapshot.elapsed_seconds


@contextmanager
def open_display(as_json: bool) -> Iterator[Display]:
    """Choose how to show progress: JSON with --json, a bar on a terminal, otherwise lines."""
    console = people_console()
    if as_json or not console.is_terminal:
        yield JsonLines() if as_json else Lines()
        return
    with Progress(BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), console=console) as progress:
        yield Bar(progress)


class Pace:
    """Measures the rate at which jobs end, from the first look at which one was running."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()  # moments and how many jobs had ended then
        self._last_end = 0.0
        self.has_begun = False

    @property
    def has_looked(self) -> bool:
        return bool(self._seen)

    def rate(self, now: float, running: int, ended: int) -> float:
        """Jobs per second up to the last end; 0 before one has ended under way.

        Between two ends it stays as it is, until the next one is overdue: else it would fall with every look.
        """
        self.has_begun = self.has_begun or running > 0 or (bool(self._seen) and ended > self._seen[0][1])
        if not self.has_begun:
            self._seen.clear()
        if not self._seen or ended > self._seen[-1][1]:
            self._last_end = now
        self._seen.append((now, ended))
        while self._is_old(now, ended):
            self._seen.popleft()
        since, before = self._seen[0]
        if ended == before:
            return 0.0
        rate = (ended - before) / (self._last_end - since)
        return rate if (now - self._last_end) * rate < OVERDUE_ENDS else (ended - before) / (now - since)

    def _is_old(self, now: float, ended: int) -> bool:
        """True if the oldest look is of no use: the next one is old enough and has seen enough jobs end."""
        if len(self._seen) < 2:
            return False
        since, before = self._seen[1]
        return now - since >= RATE_WINDOW_SECONDS and ended - before >= FEWEST_ENDINGS


def follow(
    client: Client, batch: str, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Snapshot]:
    """Look at a batch a few times a second; the last snapshot is the one in which every job has ended.

    A Redis that does not answer is waited for, without end and with a word.

    Raises:
        JobNotFound: no such batch, from the start or because Redis has lost it.
        BrokerUnavailable: Redis does not answer the first look.
    """
    started, pace, is_away = clock(), Pace(), False
    while True:
        try:
            counts, workers = client.status(batch), tuple(client.registry.workers())
        except BrokerUnavailable as error:
            if not pace.has_looked:
                raise
            if not is_away:
                say(f"{error}; waiting for it (the jobs are safe there, Ctrl-C leaves them)")
            is_away = True
            sleep(AWAY_POLL_SECONDS)
            continue
        if is_away:
            say("Redis answers again")
        now, is_away = clock() - started, False
        ended = sum(count for state, count in counts.items() if state.is_terminal)
        rate = pace.rate(now, counts[JobState.RUNNING], ended)
        yield Snapshot(counts, workers, rate, now, pace.has_begun)
        if ended == sum(counts.values()):
            return
        sleep(POLL_SECONDS)


def watch(
    client: Client, batch: str, as_json: bool, hints: bool = True, tick: Callable[[], None] = lambda: None
) -> Snapshot:
    """Show a batch until it has ended and return the last snapshot; a Redis that restarts meanwhile is waited for.

    Args:
        hints: say, once, what to do when no worker has been there for `NO_WORKER_SECONDS`.
        tick: called at every look; what it raises ends the watch.
    Raises:
        JobNotFound: no such batch.
    """
    lonely_since: float | None = None
    with open_display(as_json) as display:
        for snapshot in follow(client, batch):
            display.show(snapshot, is_last=snapshot.ended == snapshot.total)
            tick()
            if snapshot.workers:
                lonely_since = None
            elif lonely_since is None:
                lonely_since = snapshot.elapsed_seconds
            elif hints and snapshot.elapsed_seconds - lonely_since >= NO_WORKER_SECONDS:
                say(no_worker_hint(client))
                hints = False
    return snapshot


def _describe(snapshot: Snapshot) -> str:
    is_loading = not snapshot.has_begun and {worker.state for worker in snapshot.workers} == {WorkerState.LOADING}
    return f"{snapshot}; loading the model" if is_loading else str(snapshot)
