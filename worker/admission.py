"""Decides when this process may take the next message, and tells Celery's consumer.

Celery would take as many messages as there are threads. A job taken by a busy worker then waits while another worker is
idle. So the gate opens only when the job can begin soon: the GPU is free, or will be by the time the inputs have been
fetched, and no other job of this process is about to need it.

    received --> FETCHING --fetched--> READY --has_gpu--> BEGUN --ended-->

A job whose inputs take longer than is usual here is not about to need the GPU: the gate opens for another one, up to
the number of threads, of which slow inputs may hold half (`slow_inputs.py`). So a slow source costs its own job time.

While a suspect (`isolation.py`) is on its way or at work, nothing else is taken: it may end this process, and what it
would take along is better off with another worker.

The hook is the one that Celery's own `worker_disable_prefetch` uses: `can_consume` of the channel's QoS, which kombu
asks before it sends BRPOP. A test fails when it moves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock
from types import MethodType
from typing import Any

from celery import bootsteps, signals
from celery.worker.consumer.tasks import Tasks

from worker.model_pool import ModelPool

SHORTEST_LEAD_SECONDS = 1.0
"""Time before the GPU is free at which the next job may be taken, at least; longer where fetching takes longer."""


class Stage(Enum):
    """Stage of a message's job on its way to the GPU."""

    FETCHING = auto()
    READY = auto()
    BEGUN = auto()


@dataclass
class InFlight:
    """One message of this process that has not ended."""

    since: float
    stage: Stage = Stage.FETCHING


class Admission:
    """The gate: open when another job of this process could begin soon.

    Once open it stays open until a message comes: by then BRPOP is under way in Redis, and a message that it brings
    to a closed gate would lie there unread.

    Args:
        threads: most messages in flight.
        clock: seconds, for tests.
    """

    def __init__(self, pool: ModelPool, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._threads = threads
        self._clock = clock
        self._lock = Lock()
        self._in_flight: dict[str, InFlight] = {}
        self._fetch_seconds = 0.0
        self._is_open = False
        self._is_closed_for_good = False
        # Lives as long as the process: a descriptor that another thread still writes to must never be reused.
        self.wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self.wake_reader, False)
        os.set_blocking(self._wake_writer, False)

    def is_open(self) -> bool:
        """True when the next message may be taken."""
        with self._lock:
            self._is_open = not self._is_closed_for_good and (self._is_open or self._has_room())
            return self._is_open

    def received(self, task_id: str) -> None:
        """A message has arrived: the gate closes until its job has the GPU or turns out to be slow."""
        with self._lock:
            self._in_flight[task_id] = InFlight(self._clock())
            self._is_open = False

    def fetched(self, task_id: str, fetch_seconds: float) -> None:
        """The job of that message has its inputs, `fetch_seconds` after it began, and needs the GPU next."""
        with self._lock:
            self._move(task_id, Stage.READY)
            usual = 0.9 * self._fetch_seconds
            # A source that was slow once must not make this worker take jobs long before it can begin them.
            self._fetch_seconds = max(min(fetch_seconds, usual + SHORTEST_LEAD_SECONDS), usual)

    def has_gpu(self, task_id: str, is_alone: bool = False) -> None:
        """The job of that message has begun its turn.

        Args:
            is_alone: the job may end this process, so no other is taken before it has ended.
        """
        if is_alone:
            return
        with self._lock:
            self._move(task_id, Stage.BEGUN)
        self.look_again()

    def ended(self, task_id: str) -> None:
        """Nothing more comes of that message."""
        with self._lock:
            self._in_flight.pop(task_id, None)
        self.look_again()

    def close(self) -> None:
        """Take nothing more."""
        with self._lock:
            self._is_closed_for_good = True

    def look_again(self) -> None:
        """Wake the consumer's loop if the gate has opened: by itself it looks only once a second."""
        with self._lock:
            is_news = not self._is_open and not self._is_closed_for_good and self._has_room()
        if is_news:
            with suppress(BlockingIOError):  # full: the loop is about to wake anyway
                os.write(self._wake_writer, b"\0")

    def woken(self) -> None:
        """Empty the pipe that woke the loop."""
        with suppress(BlockingIOError):
            os.read(self.wake_reader, 4096)

    def _move(self, task_id: str, stage: Stage) -> None:
        if task_id in self._in_flight:
            self._in_flight[task_id].stage = stage

    def _has_room(self) -> bool:
        lead_seconds = max(SHORTEST_LEAD_SECONDS, 2 * self._fetch_seconds)
        return (
            len(self._in_flight) < self._threads
            and self._pool.free_within(lead_seconds)
            and not any(self._needs_gpu_soon(item, lead_seconds) for item in self._in_flight.values())
        )

    def _needs_gpu_soon(self, item: InFlight, usual_seconds: float) -> bool:
        is_slow = item.stage is Stage.FETCHING and self._clock() - item.since > usual_seconds
        return item.stage is not Stage.BEGUN and not is_slow


class AdmissionStep(bootsteps.StartStopStep):
    """Puts the gate of `app.edit_worker` into Celery's consumer, again after each reconnect."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        gate: Admission = consumer.app.edit_worker.admission
        qos = consumer.task_consumer.channel.qos
        may_take = qos.can_consume
        qos.can_consume = MethodType(lambda _: gate.is_open() and may_take(), qos)
        signals.task_received.connect(_on_received, weak=False, dispatch_uid="admission")
        # A request may end without its task: expired before it began, or arguments that the task cannot have.
        signals.task_revoked.connect(_on_revoked, weak=False, dispatch_uid="admission")
        signals.task_postrun.connect(_on_ended, weak=False, dispatch_uid="admission")
        consumer.hub.add_reader(gate.wake_reader, gate.woken)

    def stop(self, consumer: Any) -> None:
        consumer.hub.remove_reader(consumer.app.edit_worker.admission.wake_reader)


def _on_received(sender: Any, request: Any, **_: Any) -> None:
    if request.eta:  # of a Celery client; Celery holds it until its time comes, and the gate must not wait for that
        return
    sender.app.edit_worker.admission.received(request.id)


def _on_revoked(sender: Any, request: Any, **_: Any) -> None:
    sender.app.edit_worker.admission.ended(request.id)


def _on_ended(sender: Any, task_id: str, **_: Any) -> None:
    sender.app.edit_worker.admission.ended(task_id)
