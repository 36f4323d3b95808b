"""Background threads that do a small thing again and again, whatever happens to Redis."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread

from jobs.errors import BrokerError
from worker.events import Events, TickFailed
from worker.redis_outage import RedisOutage


class Periodic:
    """Calls `tick` every `seconds` on a thread of its own.

    Redis being away is reported to `outage`, which the threads of a process share. Any other error is reported with its
    trace and the thread goes on: it must not die silently under a worker that looks alive.
    """

    def __init__(
        self, name: str, seconds: float, tick: Callable[[], object], events: Events, outage: RedisOutage | None = None
    ) -> None:
        self.name = name
        self._events = events
        self._outage = outage or RedisOutage(events)
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

    def why_not_live(self) -> str | None:
        """Reason why a process that lives for this thread should be restarted; None when it is fine."""
        return None if self._thread.is_alive() else f"the thread {self.name} has ended"

    def why_not_ready(self) -> str | None:
        """Reason why this thread does no work now; None when it does."""
        return "Redis does not answer" if self._is_cut_off else self.why_not_live()

    def _loop(self) -> None:
        while not self._stop.wait(self._seconds):
            self.run_once()

    def run_once(self) -> None:
        """One tick, with its errors handled."""
        try:
            self._tick()
        except BrokerError as error:
            self._is_cut_off = True
            self._outage.met(self.name, str(error))
        except Exception as error:
            self._events.send(TickFailed(self.name, error))
        else:
            self._is_cut_off = False
            self._outage.over(self.name)
