"""Progress of the loading of the model, as events and for `worker health`."""

from __future__ import annotations

import time
from collections.abc import Callable

from worker.events import Events, ModelLoading

EVERY_SECONDS = 2.0
EVERY_PERCENT = 10
LEAST_SECONDS = 0.5  # between two lines: a small model is loaded in one


class LoadProgress:
    """Counts the bytes that the engine has read, and sends an event every two seconds or ten percent."""

    def __init__(self, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._began_at: float | None = None
        self._logged_at = 0.0
        self._logged_percent = 0
        self._words = ""

    def report(self, done_bytes: int, total_bytes: int) -> None:
        """Note how much is read; `kontext.load` calls this."""
        percent = 100 * done_bytes // max(total_bytes, 1)
        self._words = f"{percent} % of {total_bytes / 1e9:.1f} GB read" if percent < 100 else "weights read, warming up"
        now = self._clock()
        if self._began_at is None:
            self._began_at = self._logged_at = now
        if percent == 100 or self._is_news(now - self._logged_at, percent - self._logged_percent):
            self._logged_at, self._logged_percent = now, percent
            self._events.send(ModelLoading(percent, done_bytes / 1e9, total_bytes / 1e9, now - self._began_at))

    def _is_news(self, seconds: float, percent: int) -> bool:
        return seconds >= EVERY_SECONDS or (percent >= EVERY_PERCENT and seconds >= LEAST_SECONDS)

    def __str__(self) -> str:
        return self._words
