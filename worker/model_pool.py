"""The one resident model of this process, its states, its thread, and the GPU's turn.

    LOADING --> READY <--> BUSY            DRAINING: finishes what it has, takes nothing new
        '--------'------'----> BROKEN      the device is gone; the process must end

The GPU is a turn: one thread has it from the text encoder to the decoded picture, while its neighbours download,
decode, encode and upload.

Everything on the device runs in one thread that the pool owns: the load, the warm-up and every edit. What torch and its
compiler keep per thread (graphs, workspaces, the current stream) is then prepared once and found again by every job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

from jobs.errors import ErrorCode, StopWorker
from jobs.registry import WorkerState
from kontext import NotANumber
from worker.engines import Engine
from worker.events import Events, ModelReady, WarmUpFailed

T = TypeVar("T")

ABORT_POLL_SECONDS = 0.25
"""How often a job waiting for the GPU checks for cancellation."""


class ModelPool:
    """Holds the engine and hands out the GPU's turn."""

    def __init__(self, load: Callable[[], Engine], events: Events) -> None:
        self._load = load
        self._events = events
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._engine: Engine | None = None
        self._condition = Condition()
        self._is_taken = False
        self._is_warm = False
        self._state = WorkerState.LOADING
        self._forecast = TurnForecast()
        self.on_change: Callable[[], None] = lambda: None
        """Called when the end of the turn has come nearer or has come."""

    @property
    def state(self) -> WorkerState:
        return self._state

    @property
    def engine(self) -> Engine | None:
        """The engine once it is loaded."""
        return self._engine

    def load(self, check: Callable[[], None] = lambda: None) -> None:
        """Load and warm up the model; whatever the engine raises goes through.

        Only a warm-up whose image is not a number is no reason to stay away: the jobs fail and say why.

        Args:
            check: called while waiting; what it raises ends the wait, not the load.
        """
        loading = self._thread.submit(self._load_and_warm_up)
        while True:
            try:
                return loading.result(ABORT_POLL_SECONDS)
            except NotYet:
                if loading.done():  # the load itself timed out somewhere
                    raise
                check()

    def call(self, function: Callable[[], T]) -> T:
        """Run a function in the device's thread and return what it returns; for whoever holds the turn."""
        return self._thread.submit(function).result()

    def try_out(self) -> None:
        """Do the warm-up edit once more; whatever the engine raises goes through.

        An image that is not a number counts only when the first warm-up gave one.
        """
        with self.turn(lambda: None) as engine:
            try:
                self.call(engine.warm_up)
            except NotANumber:
                if self._is_warm:
                    raise

    def _load_and_warm_up(self) -> None:
        start = time.monotonic()
        engine = self._load()
        try:
            engine.warm_up()
            self._is_warm = True
        except NotANumber as error:
            self._events.send(WarmUpFailed(str(error)))
        self._engine = engine
        self._state = WorkerState.READY
        self._events.send(ModelReady(engine.model_name, engine.name, engine.device, time.monotonic() - start))

    def mark_broken(self) -> None:
        """Say that the device cannot be used again by this process."""
        self._state = WorkerState.BROKEN

    @contextmanager
    def turn(self, check: Callable[[], None]) -> Iterator[Engine]:
        """Wait for the GPU and hold it.

        Args:
            check: called while waiting; what it raises ends the wait.
        Raises:
            StopWorker: the model is not loaded or the device is broken.
        """
        with self._condition:
            while self._is_taken:
                check()
                self._condition.wait(ABORT_POLL_SECONDS)
            check()
            if self._engine is None or self._state is WorkerState.BROKEN:
                raise StopWorker(ErrorCode.WORKER_LOST, "the model is not usable in this process")
            self._is_taken, self._state = True, WorkerState.BUSY
            self._forecast.turn_began()
        try:
            yield self._engine
        finally:
            with self._condition:
                self._is_taken = False
                if self._state is WorkerState.BUSY:
                    self._state = WorkerState.READY
                self._forecast.turn_ended()
                self._condition.notify()
            self.on_change()

    def note_step(self, step: int, total_steps: int) -> None:
        """Learn from a finished step how long the turn will last."""
        self._forecast.step_done(step, total_steps)
        self.on_change()

    def free_within(self, seconds: float) -> bool:
        """Whether the GPU is free or will, by its steps so far, be free within that time."""
        return self._state is WorkerState.READY or (
            self._state is WorkerState.BUSY and self._forecast.remaining_seconds() <= seconds
        )


class TurnForecast:
    """Predicts the end of the present turn from the pace of its steps, and before the first ones from the last turn."""

    def __init__(self) -> None:
        self._began_at = 0.0
        self._step_times: tuple[float, float] | None = None  # of the first and of the latest step
        self._steps_left = 0
        self._seconds_per_step: float | None = None
        self._last_turn_seconds = float("inf")
        self._tail_seconds = 0.0

    def turn_began(self) -> None:
        self._began_at = time.monotonic()
        self._step_times = self._seconds_per_step = None

    def step_done(self, step: int, total_steps: int) -> None:
        now = time.monotonic()
        first = self._step_times[0] if self._step_times else now
        self._step_times, self._steps_left = (first, now), total_steps - step
        if step > 1:
            self._seconds_per_step = (now - first) / (step - 1)

    def turn_ended(self) -> None:
        now = time.monotonic()
        if self._step_times and self._steps_left == 0:
            self._last_turn_seconds = now - self._began_at
            self._tail_seconds = now - self._step_times[1]

    def remaining_seconds(self) -> float:
        """Seconds until the turn ends; infinite while nothing is known."""
        now = time.monotonic()
        if self._step_times and (self._seconds_per_step is not None or self._steps_left == 0):
            ahead = self._steps_left * (self._seconds_per_step or 0.0) + self._tail_seconds
            return max(0.0, ahead - (now - self._step_times[1]))
        return max(0.0, self._last_turn_seconds - (now - self._began_at))
