"""Nobody waits longer than its turn: judged from the histories of all jobs, and from what workers do meanwhile.

Order. Every timestamp in a history is by the clock of Redis and of one atomic script, so turns can be judged exactly,
whatever the faults and however slow the machine: while a job waited, who was taken?

Idleness. A job must not wait while a worker has nothing to do, for longer than `BOUND_SECONDS`.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from redis.exceptions import RedisError

from jobs.errors import BrokerError, ErrorCode
from jobs.ledger import MICROSECONDS, JobRecord
from jobs.registry import SILENT_AFTER_SECONDS, WorkerInfo, WorkerState
from tests.chaos.bench import Bench
from tests.integration.conftest import Service
from worker.health import read_health

BOUND_SECONDS = 10.0
"""A lost message is found after about 6 s; the rest is for a machine that does other things too."""

BEAT_SECONDS = 3.0
"""A worker that has told the registry nothing for so long is out of touch."""

PATIENCE_SECONDS = 5.0
"""A probe that is wrong for so long would have a supervisor restart the worker."""

RANKS = {"high": 0, "normal": 1, "low": 2}
FIRST = -1
"""Rank of what a worker lost or handed back."""

MOST_TURNS_AHEAD = 2
"""Of another tenant before one's own first: one that it waited for, and one when both came to the same place."""


@dataclass(frozen=True)
class Wait:
    """A job in the queue, from its entry until it was taken or ended."""

    job_id: str
    rank: int
    tenant: str
    since: datetime
    until: datetime
    was_taken: bool = True


def overtaken(records: Iterable[JobRecord]) -> list[str]:
    """One line for each job that was not taken in its turn."""
    waits = sorted((wait for record in records for wait in waits_of(record)), key=lambda wait: wait.until)
    taken = [wait for wait in waits if wait.was_taken]
    return [line for wait in waits for line in _overtaken(wait, _meanwhile(wait, taken))]


def waits_of(record: JobRecord) -> Iterator[Wait]:
    """The times a job spent in the queue, without those after a back-off, whose beginning no history tells."""
    job = record.job
    rank, tenant = RANKS[job.priority], job.tenant or ""
    since, is_first, losses = record.created_at, False, 0
    for attempt in record.history:
        assert attempt.started_at is not None
        begun = since or attempt.started_at
        yield Wait(job.id, FIRST if is_first else rank, tenant, begun, attempt.started_at)
        losses += attempt.reason == ErrorCode.WORKER_LOST
        # After a second loss it goes first or last, depending on what no history tells: whether it was being worked on.
        is_first = attempt.reason == ErrorCode.WORKER_LOST and losses == 1
        since = attempt.ended_at if is_first else None
    if not record.history and record.created_at and record.finished_at:
        yield Wait(job.id, rank, tenant, record.created_at, record.finished_at, was_taken=False)


def _meanwhile(wait: Wait, taken: Sequence[Wait]) -> list[Wait]:
    """What was taken between a wait's ends."""
    first = bisect_right(taken, wait.since, key=lambda other: other.until)
    last = bisect_left(taken, wait.until, key=lambda other: other.until)
    return list(taken[first:last])


def _overtaken(wait: Wait, taken: Sequence[Wait]) -> Iterator[str]:
    worse = [other.job_id for other in taken if other.rank > wait.rank]
    if worse:
        seconds = (wait.until - wait.since).total_seconds()
        yield f"{wait.job_id}: overtaken by {len(worse)} that go after it, {worse[0]} first, in {seconds:.2f} s"
    if wait.rank == FIRST:
        return
    turns = Counter(other.tenant for other in taken if other.rank == wait.rank)
    for tenant, count in turns.items():
        if tenant != wait.tenant and count > turns[wait.tenant] + MOST_TURNS_AHEAD:
            yield (
                f"{wait.job_id}: tenant {tenant!r} was served {count} times while it waited, its own "
                f"{wait.tenant!r} {turns[wait.tenant]} times"
            )


@dataclass
class Since:
    """When each thing began that has gone on ever since."""

    at: dict[str, float] = field(default_factory=dict)

    def note(self, names: Iterable[str], now: float) -> None:
        self.at = {name: self.at.get(name, now) for name in names}

    def longer_than(self, seconds: float, now: float) -> list[str]:
        return [name for name, since in self.at.items() if now - since > seconds]


@dataclass
class IdleWatch:
    """Looks at the service again and again, from beside it."""

    service: Service
    threads: int
    clock: Callable[[], float] = time.monotonic
    beat_seconds: float = BEAT_SECONDS
    said: dict[str, str] = field(default_factory=dict)
    looks: int = 0
    """How often both a waiting job and a worker could be judged."""

    _waiting: Since = field(default_factory=Since)
    _idle: Since = field(default_factory=Since)
    _in_touch: Since = field(default_factory=Since)

    def look(self, is_redis_well: bool) -> None:
        """Judge this moment; while something is wrong with Redis, waiting is nobody's fault."""
        now = self.clock()
        try:
            reports, waiting, late = self._read()
        except (BrokerError, RedisError):
            is_redis_well = False
        if not is_redis_well:
            for since in (self._waiting, self._idle, self._in_touch):
                since.note((), now)
            return
        self._waiting.note(waiting, now)
        self._in_touch.note((info.name for info in reports), now)
        # With short jobs a worker may look ready in every report: it is idle if its jobs stay the same ones, too.
        ready = (info for info in reports if info.state is WorkerState.READY and len(info.jobs) < self.threads)
        self._idle.note((" ".join([info.name, *info.jobs]) for info in ready), now)
        self._judge(late, now)

    def _judge(self, late: Sequence[str], now: float) -> None:
        in_touch = self._in_touch.longer_than(BOUND_SECONDS, now)
        idle = self._idle.longer_than(BOUND_SECONDS, now)
        self.looks += bool(in_touch)
        for job_id in self._waiting.longer_than(BOUND_SECONDS, now) if idle else ():
            self.said.setdefault(job_id, f"{job_id}: waits for {BOUND_SECONDS:g} s while {idle[0]!r} takes no job")
        for job_id in late if in_touch else ():
            self.said.setdefault(job_id, f"{job_id}: its lease ended {BOUND_SECONDS:g} s ago, {in_touch[0]} is there")

    def _read(self) -> tuple[list[WorkerInfo], list[str], list[str]]:
        """Workers in touch; jobs that wait; jobs whose lease ended long ago."""
        key, redis = self.service.ledger.key, self.service.ledger.redis
        reports = [
            info for info in self.service.client.registry.workers() if self._beat_age(info.name) < self.beat_seconds
        ]
        ended_before = self.service.ledger.now_us() - BOUND_SECONDS * MICROSECONDS
        waiting = cast("list[str]", redis.zrange(key("queued"), 0, -1))
        return reports, waiting, cast("list[str]", redis.zrangebyscore(key("running"), "-inf", ended_before))

    def _beat_age(self, name: str) -> float:
        left_ms = self.service.ledger.redis.pttl(self.service.ledger.key("worker", name))
        return SILENT_AFTER_SECONDS - left_ms / 1000 if left_ms > 0 else SILENT_AFTER_SECONDS


@dataclass
class Probes:
    """Asks every worker that has begun for its liveness, as a supervisor does."""

    bench: Bench
    patience_seconds: float = PATIENCE_SECONDS
    said: dict[str, str] = field(default_factory=dict)
    _ill: Since = field(default_factory=Since)

    def ask(self) -> None:
        now = time.monotonic()
        told = {health.name: health.why_not_live(time.time()) for health in read_health(self.bench.runtime)}
        ill = {
            str(worker.process.pid): f"worker {worker.name}: a probe says {reason!r} of a process that lives"
            for worker in self.bench.workers.values()
            if worker.process.poll() is None and (reason := told.get(worker.name, "no health file"))
        }
        self._ill.note((pid for pid in ill if self._has_begun(pid)), now)
        self.said |= {pid: ill[pid] for pid in self._ill.longer_than(self.patience_seconds, now)}

    def _has_begun(self, pid: str) -> bool:
        logs = (worker.log for worker in self.bench.workers.values() if str(worker.process.pid) == pid)
        return any("worker_takes_jobs" in log for log in logs)
