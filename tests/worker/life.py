"""The metrics of a worker to which everything has happened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

from prometheus_client import CollectorRegistry

from jobs.registry import WorkerState
from jobs.schema import JobState
from worker.engines import Engine
from worker.events import (
    AttemptsUsedUp,
    CallbackRetried,
    Events,
    JobEnded,
    JobRequeued,
    JobTaken,
    LeaseExpired,
    LeaseLost,
    LostJobCancelled,
    MemorySpared,
    MessageLost,
    MessagePutAside,
    ModelReady,
    Reconciled,
    RedisAway,
    StageEnded,
    TurnEnded,
    WorkerStopped,
)
from worker.metrics.activity import WorkerCollector, worker_metrics


def a_whole_life() -> CollectorRegistry:
    """The metrics of a worker that met one event of each kind that counts."""
    registry, listeners = worker_metrics()
    cache = SimpleNamespace(hits=7, misses=2)
    engine = cast(Engine, SimpleNamespace(device="cpu", cache=cache))
    registry.register(WorkerCollector(lambda: WorkerState.BUSY, lambda: engine))
    events = Events(*listeners)
    for event in (
        ModelReady("tiny", "native", "cpu", 3.0),
        JobTaken("a", 1, 0.5),
        *(StageEnded("a", stage, 4.5) for stage in ("fetch", "waiting", "encode", "sample", "decode", "upload")),
        MemorySpared("a", "once more with offload"),
        TurnEnded("a", 5.0, 28),
        JobEnded("a", 1, 5.0, "engine_failed", JobState.FAILED, 0.5),
        JobRequeued("b", 1, "input_unreachable", 2.0),
        LeaseLost("c", 1),
        LeaseExpired("d"),
        AttemptsUsedUp("e"),
        LostJobCancelled("g"),
        MessageLost("f"),
        MessagePutAside(7, "no JSON"),
        Reconciled(3, 0.01),
        CallbackRetried("a", 1, "HTTP 410", 0, "dropped", 0.5),
        RedisAway(0.0, True, "timeout"),
        WorkerStopped("w1"),
    ):
        events.send(event)
    return registry
