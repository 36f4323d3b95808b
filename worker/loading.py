"""How far the loading of the model is, for the log and for `worker health`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
EVERY_PERCENT = 10


class LoadProgress:
    """Hears from the engine how many bytes are read, and logs a line every two seconds or ten percent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_at = self._logged_at = clock()
        self._logged_percent = 0
        self._words = ""

    def report(self, done_bytes: int, total_bytes: int) -> None:
        """What `kontext.load` calls while it reads."""
        percent = 100 * done_bytes // max(total_bytes, 1)
        self._words = f"{percent} % of {total_bytes / 1e9:.1f} GB read" if percent < 100 else "weights read, warming up"
        now = self._clock()
        if now - self._logged_at < EVERY_SECONDS and percent < min(100, self._logged_percent + EVERY_PERCENT):
            return
        self._logged_at, self._logged_percent = now, percent
        log.info(
            "model_loading percent=%d read=%.1fGB total=%.1fGB seconds=%.1f",
            *(percent, done_bytes / 1e9, total_bytes / 1e9, now - self._began_at),
        )

    def __str__(self) -> str:
        return self._words
