"""Gauges of the queue, the callbacks, the workers and Redis, read from Redis at each scrape.

One process shows them (`worker exporter`), however many workers there are: each worker's own metrics say only what that
worker did.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from jobs.connection import connect, redis_errors
from jobs.dead_letters import DeadLetters
from jobs.errors import BrokerError
from jobs.ledger import Ledger
from jobs.registry import WorkerRegistry, WorkerState
from worker.metrics.server import WhyNot
from worker.settings import Settings

log = logging.getLogger(__name__)

FRESH_SECONDS = 1.0
"""Scrapes that follow each other faster share one reading: asking often must not load Redis."""


def queue_registry(settings: Settings) -> tuple[CollectorRegistry, WhyNot]:
    """Make the exporter's metrics and its readiness."""
    registry, collector = CollectorRegistry(), QueueCollector(settings)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry, collector.why_not_ready


ANSWER_SECONDS = 2.0
"""A scrape is answered by then, also while Redis hangs: Prometheus would give up, and miss that Redis is away."""


class QueueCollector(Collector):
    """Reads the service's state from Redis; while Redis is away it shows `kontext_redis_up 0` and nothing else."""

    def __init__(self, settings: Settings) -> None:
        self._ledger = Ledger(connect(settings.redis_url, pings=False), settings.key_prefix)
        self._registry = WorkerRegistry(self._ledger.redis, settings.key_prefix)
        self._letters = DeadLetters(self._ledger.redis, self._ledger.key("dead-letters"))
        self._lock = Lock()
        self._read_at = float("-inf")
        self._last: list[Metric] = []
        self._is_cut_off = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="queue-metrics")
        self._reading: Future[list[Metric]] | None = None

    def describe(self) -> list[Metric]:
        """Names nothing, so that making the registry asks nothing of Redis."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if self._reading is None and time.monotonic() - self._read_at > FRESH_SECONDS:
                self._reading = self._executor.submit(lambda: list(self._read()))
            if self._reading is not None:
                self._last = self._wait_for(self._reading)
            yield from self._last

    def _wait_for(self, reading: Future[list[Metric]]) -> list[Metric]:
        """The reading, if it comes in time; otherwise it goes on, and a later scrape takes it."""
        try:
            known = reading.result(ANSWER_SECONDS)
        except TimeoutError:
            return [_redis_up(False)]
        self._read_at, self._reading = time.monotonic(), None
        return known

    def why_not_ready(self) -> str | None:
        """Reason for which the queue cannot be read; None when Redis answers."""
        up = next(metric for metric in self.collect() if metric.name == "kontext_redis_up")
        return None if up.samples[0].value else "Redis does not answer"

    def _read(self) -> Iterator[Metric]:
        try:
            known = [*self._queue(), *self._workers(), *self._redis()]
        except BrokerError as error:
            if not self._is_cut_off:
                log.warning("redis_away thread=metrics reason=%s", error)
            self._is_cut_off, known = True, []
        else:
            if self._is_cut_off:
                log.info("redis_back thread=metrics")
            self._is_cut_off = False
        yield _redis_up(not self._is_cut_off)
        yield from known

    def _queue(self) -> Iterator[Metric]:
        counts, ages = self._ledger.queue_counts(), self._ledger.queue_ages()
        yield _by(
            "kontext_jobs",
            "Open jobs by state; delayed ones wait for their next attempt.",
            "state",
            {name: counts[name] for name in ("queued", "delayed", "running")},
        )
        yield _gauge(
            "kontext_oldest_queued_seconds", "Time for which the queue's head has waited.", ages.oldest_queued_seconds
        )
        yield _gauge("kontext_callbacks_pending", "Callbacks not yet delivered.", counts["callbacks"])
        yield _gauge(
            "kontext_callback_overdue_seconds",
            "Time for which the most overdue callback should have been sent.",
            ages.callback_overdue_seconds,
        )
        yield _gauge("kontext_dead_letters", "Messages put aside as none of ours.", self._letters.count())

    def _workers(self) -> Iterator[Metric]:
        states = Counter(info.state for info in self._registry.workers())
        yield _by(
            "kontext_workers",
            "Workers that reported to Redis within the last 15 seconds, by state.",
            "state",
            {state: states[state] for state in WorkerState},
        )

    def _redis(self) -> Iterator[Metric]:
        redis = self._ledger.redis
        started = time.perf_counter()
        with redis_errors(redis):
            redis.time()  # not PING, which a Redis that cannot write its files refuses
            seconds = time.perf_counter() - started
            facts: dict[str, Any] = redis.info()
        yield _gauge("kontext_redis_round_trip_seconds", "Time of one small command from the exporter.", seconds)
        yield _gauge("kontext_redis_memory_bytes", "Memory that Redis uses.", facts["used_memory"])
        limit = facts.get("maxmemory") or facts.get("total_system_memory", 0)
        yield _gauge("kontext_redis_memory_limit_bytes", "Its maxmemory, otherwise its machine's memory.", limit)
        is_well = all(facts.get(name, "ok") == "ok" for name in ("aof_last_write_status", "rdb_last_bgsave_status"))
        yield _gauge("kontext_redis_persistence_ok", "1 while Redis can write its files.", float(is_well))


def _redis_up(is_up: bool) -> Metric:
    return _gauge("kontext_redis_up", "1 while Redis answers the exporter.", float(is_up))


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=value)


def _by(name: str, meaning: str, label: str, values: dict[Any, float]) -> Metric:
    metric = GaugeMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        metric.add_metric([str(key)], value)
    return metric
