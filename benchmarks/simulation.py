"""Workers without images: threads that make a worker's requests to Redis, at full speed or at a worker's pace."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from os import getpid
from random import random
from typing import Any, TypeVar, cast

from jobs.ledger import Claim, Ledger, Outbox, Progress
from jobs.queue import QUEUE, EditQueue
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import JobState, Outcome
from jobs.settings import BrokerSettings, load_settings
from worker.callbacks import INTERVAL_SECONDS as CALLBACK_SECONDS
from worker.edit_worker import BEAT_SECONDS
from worker.events import Events
from worker.leases import RENEW_SECONDS
from worker.reconciler import INTERVAL_SECONDS as RECONCILE_SECONDS
from worker.reconciler import Reconciler

T = TypeVar("T")

PROCESSES = 2
LEASE_SECONDS = 30
IDLE_SECONDS = 1
"""A worker leaves after waiting that long for a message."""

DONE = Outcome(output="file:///out/picture.png", width=1024, height=1024)


@contextmanager
def simulated_workers(run: Callable[..., T], broker_url: str, workers: int, *more: Any) -> Iterator[list[Future[T]]]:
    """`run(broker_url, workers of a process, *more)` in PROCESSES processes."""
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as processes:
        yield [processes.submit(run, broker_url, workers // PROCESSES, *more) for _ in range(PROCESSES)]


def run_lives(broker_url: str, workers: int) -> list[float]:
    """Work as that many workers until the queue is empty; returns the timestamps at which a job was taken or ended."""
    ledger = Ledger.from_settings(load_settings(BrokerSettings, broker_url=broker_url))
    with ThreadPoolExecutor(workers) as threads:
        moments = threads.map(lambda number: _work(ledger, f"worker-{number}"), range(workers))
        return [moment for of_one in moments for moment in of_one]


def lives_per_second(runs: Sequence[list[float]]) -> float:
    """Jobs per second over all processes; each job has two moments."""
    moments = [moment for run in runs for moment in run]
    return len(moments) / 2 / (max(moments) - min(moments))


def live(ledger: Ledger, hint: str, worker: str) -> None:
    """One job's life as the ledger sees it, begun by a message that names `hint`."""
    claim = ledger.claim_best(worker, LEASE_SECONDS, hint=hint)
    assert isinstance(claim, Claim), f"{hint}: {claim.reason}"
    ledger.spend(claim.job_id, claim.token)
    ledger.renew(claim.job_id, claim.token, LEASE_SECONDS, Progress("sampling", 1, 30))
    assert ledger.finish(claim.job_id, claim.token, JobState.SUCCEEDED, DONE)


def next_job(ledger: Ledger) -> str | None:
    """Take the next message; None when none comes."""
    taken = cast("tuple[str, str] | None", ledger.redis.brpop([QUEUE], timeout=IDLE_SECONDS))
    return None if taken is None else str(json.loads(taken[1])["headers"]["id"])


def run_busy(broker_url: str, workers: int, seconds: float) -> None:
    """Be that many workers in the middle of a long job each: leases, beats, callbacks and the reconciler."""
    settings = load_settings(BrokerSettings, broker_url=broker_url)
    names = [f"worker-{getpid()}-{number}" for number in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        list(threads.map(lambda name: _keep_busy(settings, name, seconds), names))


def _keep_busy(settings: BrokerSettings, name: str, seconds: float) -> None:
    ledger = Ledger.from_settings(settings)
    registry = WorkerRegistry(ledger.redis)
    reconciler = Reconciler(ledger, EditQueue(ledger.redis), max_attempts=3, events=Events())
    hint = next_job(ledger)
    assert hint is not None
    claim = ledger.claim_best(name, LEASE_SECONDS, hint=hint)
    assert isinstance(claim, Claim)
    job_id = claim.job_id
    ticks: list[tuple[float, Callable[[], object]]] = [
        (RENEW_SECONDS, lambda: ledger.renew(job_id, claim.token, LEASE_SECONDS, Progress("sampling", 1, 30))),
        (BEAT_SECONDS, lambda: registry.beat(WorkerInfo(name, WorkerState.BUSY, device="cuda:0", jobs=(job_id,)))),
        (CALLBACK_SECONDS, lambda: Outbox(ledger).take(1, LEASE_SECONDS)),
        (RECONCILE_SECONDS, reconciler.tick),
    ]
    ends_at = time.monotonic() + seconds
    agenda = sorted((time.monotonic() + every * random(), number) for number, (every, _) in enumerate(ticks))
    while (due := heapq.heappop(agenda))[0] < ends_at:
        moment, number = due
        time.sleep(max(0.0, moment - time.monotonic()))
        every, tick = ticks[number]
        tick()
        heapq.heappush(agenda, (moment + every, number))


def _work(ledger: Ledger, worker: str) -> list[float]:
    moments = []
    while (hint := next_job(ledger)) is not None:
        moments.append(time.time())
        live(ledger, hint, worker)
        moments.append(time.time())
    return moments
