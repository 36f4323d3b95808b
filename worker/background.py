"""Background threads that do a small thing again and again, whatever happens to Redis."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Event, Thread

from jobs.errors import BrokerUnavailable

log = logging.getLogger(__name__)


class Periodic:
    """Calls `tick` every `seconds` on a thread of its own.

    Redis being away is said once, and once more when it is back. Any other error is logged with its trace and the
    thread goes on: it must not die silently under a worker that looks alive.
    """

    def __init__(self, name: str, seconds: float, tick: Callable[[], object]) -> None:
        self.name = name
        self._seconds = seconds
        self._tick = tick
        self._stop = Event()
        self._is_cut_off = False
        self._thread = Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_seconds: float = 10) -> None:
        """Ask the thread to end and wait for the tick it is in."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _loop(self) -> None:
        while not self._stop.wait(self._seconds):
            self.run_once()

    def run_once(self) -> None:
        """One tick, with its errors handled."""
        try:
            self._tick()
        except BrokerUnavailable as error:
            if not self._is_cut_off:
                log.warning("redis_away thread=%s reason=%s", self.name, error)
            self._is_cut_off = True
        except Exception:
            log.exception("tick_failed thread=%s", self.name)
        else:
            if self._is_cut_off:
                log.info("redis_back thread=%s", self.name)
            self._is_cut_off = False
