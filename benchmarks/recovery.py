"""Time until the job of a killed worker runs again, with nothing and with a long queue waiting.

    python -m benchmarks.recovery [--queued 100000] [--rounds 3]

Two real workers with a stand-in engine, default settings, and a private Redis. One of them samples a long job; behind
it lie `--queued` jobs of 0.25 s, which the other one works through. The first one is killed (SIGKILL), and the clock
runs until its job has been taken again. A lease is renewed twice a second and ends `DG_LEASE_SECONDS` (30 s) after the
last renewal, so 29.5 s of the result are the lease.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.report import parser, publish
from benchmarks.workers import Bench, bench, running_workers
from jobs.ledger import JobRecord
from jobs.schema import JobState
from worker.health import read_health

LONG_STEPS = 1000
POLL_SECONDS = 0.02


def measure(queued: int, rounds: int) -> dict[str, Any]:
    return {
        "rounds": rounds,
        "lease_seconds": 30,
        "nothing_waiting": measure_recovery(0, rounds),
        f"{queued}_waiting": measure_recovery(queued, rounds),
    }


def measure_recovery(queued: int, rounds: int) -> dict[str, float]:
    """Kill a worker in each round, each with a service of its own; seconds until its job runs again."""
    seconds = [_recover(queued) for _ in range(rounds)]
    return {
        "runs_again_after_median_seconds": round(statistics.median(seconds), 2),
        "runs_again_after_longest_seconds": round(max(seconds), 2),
    }


def _recover(queued: int) -> float:
    with bench() as service:
        jobs = (service.job(name, LONG_STEPS if name == "lost" else 1) for name in _names(queued))
        assert all(submission.verdict == "created" for submission in service.client.submit_many(jobs))
        with running_workers(service, 2):
            return _kill_and_wait(service, queued)


def _names(queued: int) -> Iterator[str]:
    yield "lost"
    yield from (f"waits-{number}" for number in range(queued))


def _kill_and_wait(service: Bench, queued: int) -> float:
    first = _wait_for_run(service, after=0.0)
    (pid,) = (health.pid for health in read_health(service.folder / "runtime") if health.name == first.worker)
    os.kill(pid, signal.SIGKILL)
    killed_at = time.time()
    again = _wait_for_run(service, after=killed_at)
    left = service.ledger.queue_counts()["queued"]
    assert bool(left) == bool(queued), f"{left} of {queued} jobs waited when the job ran again"
    assert again.worker != first.worker
    assert again.started_at is not None
    return again.started_at.timestamp() - killed_at


def _wait_for_run(service: Bench, after: float) -> JobRecord:
    """Wait until the long job samples in a run that began after that moment."""
    while True:
        record = service.client.get("lost")
        is_sampling = record.progress is not None and record.progress.stage == "sampling"
        began_at = record.started_at.timestamp() if record.started_at else 0.0
        if record.state is JobState.RUNNING and is_sampling and began_at > after:
            return record
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    counts = parser(__doc__, queued=100_000, rounds=3).parse_args()
    publish("recovery", measure(**vars(counts)))
