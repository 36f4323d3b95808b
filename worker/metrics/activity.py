"""What one process has done and how it is, as Prometheus metrics: a listener of its events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import singledispatchmethod
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from jobs.errors import ErrorCode
from jobs.ledger import Verdict
from jobs.registry import WorkerState
from jobs.schema import JobState
from worker.device_memory import device_memory
from worker.engines import Engine
from worker.events import (
    NO_CODE,
    AttemptsUsedUp,
    CallbackSettled,
    Event,
    JobEnded,
    JobRequeued,
    JobTaken,
    LeaseExpired,
    LeaseLost,
    Listener,
    LostJobCancelled,
    MemorySpared,
    MessageLost,
    MessagePutAside,
    ModelReady,
    Reconciled,
    RedisAway,
    StageEnded,
    TurnEnded,
)

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Bounds of every histogram: from a cached prompt, 10 ms, to the longest run of a job by default, 15 min."""

OUTCOMES = (
    (JobState.SUCCEEDED, NO_CODE),
    (JobState.CANCELLED, ErrorCode.CANCELLED),
    *((JobState.FAILED, code) for code in ErrorCode if code is not ErrorCode.CANCELLED),
)
"""How a job can end, and with which code."""


class WorkMetrics:
    """Counts what a worker does with its jobs; `hear` is the listener.

    Args:
        registry: metrics are added there.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._ended = self._counter("kontext_jobs_ended", "Jobs ended, by outcome and error code.", "outcome", "code")
        for outcome in OUTCOMES:
            self._ended.labels(*outcome)  # at 0: what comes into being at 1 has not increased, and no alert sees it
        self._attempts = self._counter("kontext_attempts", "Runs of jobs begun.")
        self._requeued = self._counter("kontext_jobs_requeued", "Jobs put back into the queue, by reason.", "code")
        self._queued = self._histogram("kontext_queued_seconds", "Time from queue to run.")
        self._job = self._histogram("kontext_run_seconds", "Time of a run that ended its job.")
        self._stages = self._histogram("kontext_stage_seconds", "Time of a stage of a run.", "stage")
        self._busy = self._counter("kontext_gpu_busy_seconds", "Time for which jobs held the GPU's turn.")
        self._steps = self._counter("kontext_steps", "Sampling steps done.")
        self._spared = self._counter("kontext_out_of_memory", "Runs repeated with offload for lack of memory.")
        self._lost = self._counter("kontext_leases_lost", "Runs whose job belonged to another run at their end.")
        self._expired = self._counter("kontext_leases_expired", "Leases of silent workers that this one ended.")
        self._resent = self._counter("kontext_messages_lost", "Lost messages that this worker sent again.")
        self._aside = self._counter("kontext_messages_put_aside", "Messages put aside as none of ours.")
        self._runs = self._counter("kontext_reconciler_runs", "Turns of this worker's reconciler.")
        self._repairs = self._counter("kontext_reconciler_repairs", "Repairs made in these turns.")
        self._load = Gauge("kontext_model_load_seconds", "Time the model took to load.", registry=registry)
        self._model = Gauge(
            "kontext_model_info", "1, with the model that is loaded.", ["model", "engine", "device"], registry=registry
        )

    @singledispatchmethod
    def hear(self, event: Event) -> None:
        """Count an event; one that nothing counts is passed over."""

    @hear.register
    def _(self, event: JobTaken) -> None:
        self._attempts.inc()
        self._queued.observe(event.queued_seconds)

    @hear.register
    def _(self, event: JobEnded) -> None:
        self._ended.labels(event.state, event.code).inc()
        self._job.observe(event.seconds)

    @hear.register
    def _(self, event: JobRequeued) -> None:
        self._requeued.labels(event.code).inc()

    @hear.register
    def _(self, event: StageEnded) -> None:
        self._stages.labels(event.stage).observe(event.seconds)

    @hear.register
    def _(self, event: TurnEnded) -> None:
        self._busy.inc(event.seconds)
        self._steps.inc(event.steps)

    @hear.register
    def _(self, event: MemorySpared) -> None:
        self._spared.inc()

    @hear.register
    def _(self, event: LeaseLost) -> None:
        self._lost.inc()

    @hear.register
    def _(self, event: LeaseExpired) -> None:
        self._expired.inc()

    @hear.register
    def _(self, event: AttemptsUsedUp) -> None:
        self._expired.inc()
        self._ended.labels(JobState.FAILED, ErrorCode.WORKER_LOST).inc()

    @hear.register
    def _(self, event: LostJobCancelled) -> None:
        self._expired.inc()
        self._ended.labels(JobState.CANCELLED, ErrorCode.CANCELLED).inc()

    @hear.register
    def _(self, event: MessageLost) -> None:
        self._resent.inc()

    @hear.register
    def _(self, event: MessagePutAside) -> None:
        self._aside.inc()

    @hear.register
    def _(self, event: Reconciled) -> None:
        self._runs.inc()
        self._repairs.inc(event.repairs)

    @hear.register
    def _(self, event: ModelReady) -> None:
        self._load.set(event.seconds)
        self._model.labels(event.model, event.engine, event.device).set(1)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self._registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, registry=self._registry, buckets=SECONDS)


class DeliveryMetrics:
    """Counts the callbacks that a process sends, and how often Redis was away for one of its threads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._callbacks = Counter(
            "kontext_callbacks", "Callback requests, by what followed from the answer.", ["verdict"], registry=registry
        )
        for verdict in get_args(Verdict):
            self._callbacks.labels(verdict)
        self._seconds = Histogram(
            "kontext_callback_seconds", "Time of a callback request.", registry=registry, buckets=SECONDS
        )
        self._away = Counter("kontext_redis_failures", "Outages of Redis that this process has met.", registry=registry)

    @singledispatchmethod
    def hear(self, event: Event) -> None:
        """Count an event; one that nothing counts is passed over."""

    @hear.register
    def _(self, event: CallbackSettled) -> None:
        self._callbacks.labels(event.verdict).inc()
        self._seconds.observe(event.seconds)

    @hear.register
    def _(self, event: RedisAway) -> None:
        if event.is_first:
            self._away.inc()


class WorkerCollector(Collector):
    """Reads at each scrape how the worker is: its state, its device's memory, its engine's cache.

    Args:
        state, engine: ask the worker.
    """

    def __init__(self, state: Callable[[], WorkerState], engine: Callable[[], Engine | None]) -> None:
        self._state = state
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Names nothing: the worker is not ready to be asked when the registry is made."""
        return []

    def collect(self) -> Iterator[Metric]:
        present, engine = self._state(), self._engine()
        states = GaugeMetricFamily("kontext_worker_state", "1 for the worker's present state.", labels=["state"])
        for state in WorkerState:
            states.add_metric([state], float(state is present))
        yield states
        in_use, peak = device_memory(engine.device if engine else "cpu")
        yield GaugeMetricFamily("kontext_device_memory_bytes", "The device's memory that tensors use.", in_use)
        yield GaugeMetricFamily("kontext_device_memory_peak_bytes", "The most that they have used.", peak)
        cache = getattr(engine, "cache", None)  # an engine of somebody else may have none
        yield CounterMetricFamily("kontext_cache_hits", "Prompts and images found encoded.", getattr(cache, "hits", 0))
        yield CounterMetricFamily(
            "kontext_cache_misses", "Prompts and images that had to be encoded.", getattr(cache, "misses", 0)
        )


def delivery_metrics() -> tuple[CollectorRegistry, Listener]:
    """Make the metrics of a process that only delivers callbacks, and the listener that counts."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry, DeliveryMetrics(registry).hear


def worker_metrics() -> tuple[CollectorRegistry, tuple[Listener, ...]]:
    """Make the metrics of a worker and the listeners that count; add a `WorkerCollector` once there is a worker."""
    registry, deliveries = delivery_metrics()
    return registry, (WorkMetrics(registry).hear, deliveries)
