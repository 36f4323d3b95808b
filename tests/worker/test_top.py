"""`worker top` on a real Redis."""

from __future__ import annotations

from typing import cast

import redis
from rich.console import Console

from jobs.ledger import Claim, Ledger, Progress
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from jobs.schema import EditJob
from worker.top import Pace, Top, show_once


def drawn(top: Top) -> str:
    console = Console(width=140, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        show_once(top, console)
    return capture.get()


def test_the_queue_and_each_worker_are_shown(redis_client: redis.Redis) -> None:
    ledger, registry = Ledger(redis_client), WorkerRegistry(redis_client)
    list(ledger.submit([EditJob(id=name, image="s3://b/in.png", prompt="snow") for name in "abc"], "s3://out"))
    claim = ledger.claim("a", "w1", 30)
    assert isinstance(claim, Claim)
    ledger.renew("a", claim.token, 30, Progress("sampling", 7, 30))
    busy = WorkerInfo("w1", WorkerState.BUSY, device="cuda:0", jobs=("a",), memory_bytes=36 * 2**30)
    registry.beat(busy)
    registry.beat(WorkerInfo("w2", WorkerState.LOADING, last_error="engine_failed in z"))

    text = drawn(Top(ledger, registry))

    assert text.startswith("2 queued, the oldest for 0 s; 0 delayed; 1 running; 0 callbacks pending\n")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[2:]}
    assert rows["w1"] == ["busy", "cuda:0", "36.0", "GiB", "a", "sampling", "7/30"]
    assert rows["w2"] == ["loading", "engine_failed", "in", "z"]


def test_an_empty_service_says_that_there_is_no_worker(redis_client: redis.Redis) -> None:
    assert "no worker has reported within 15 s" in drawn(Top(Ledger(redis_client), WorkerRegistry(redis_client)))


def test_the_pace_is_that_of_the_steps_between_two_looks() -> None:
    pace = Pace()

    assert pace.of("a", 3, 10.0) is None
    assert pace.of("a", 3, 11.0) is None
    assert pace.of("a", 7, 12.0) == 0.5  # four steps in two seconds
    assert pace.of("a", 7, 15.0) == 0.5
    pace.forget_all_but([])
    assert pace.of("a", 9, 20.0) is None


def test_a_report_of_a_newer_worker_is_read(redis_client: redis.Redis) -> None:
    registry = WorkerRegistry(redis_client)
    registry.beat(WorkerInfo("w1", WorkerState.READY))
    report = cast(str, redis_client.get("dg:worker:w1"))
    redis_client.set("dg:worker:w1", report.replace("{", '{"of_the_future": 1, ', 1))

    assert registry.workers() == [WorkerInfo("w1", WorkerState.READY)]
