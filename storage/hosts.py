"""Turns of the hosts that jobs name, so that one which says nothing does not hold up what goes to the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

FORGOTTEN_SECONDS = 1800.0
"""A silent host that was not called for so long is called as one that is new."""

MOST_SILENT = 10_000
"""Silent hosts that are remembered: senders choose the names, and could choose others without end."""


@dataclass(frozen=True)
class Silence:
    """Between two calls that were not answered, the first since the last answer and the latest; seconds."""

    since: float
    latest: float


class Hosts:
    """Gives a host that did not answer lately one request at a time. Threads may share one.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._silent: dict[str, Silence] = {}  # in the order of their latest calls
        self._called: dict[str, int] = {}

    @property
    def silent_count(self) -> int:
        """Number of silent hosts that are remembered."""
        return len(self._silent)

    @contextmanager
    def turn(self, host: str) -> Iterator[bool]:
        """Report whether the host may be called now; the call is made inside the `with` block."""
        with self._lock:
            self._forget()
            is_given = host not in self._silent or host not in self._called
            if is_given:
                self._called[host] = self._called.get(host, 0) + 1
        try:
            yield is_given
        finally:
            if is_given:
                self._leave(host)

    def note(self, host: str, is_silent: bool) -> None:
        """Record whether the host answered."""
        with self._lock:
            before = self._silent.pop(host, None)
            if is_silent:
                now = self._clock()
                self._silent[host] = Silence(before.since if before else now, now)
            self._forget()

    def silent_seconds(self, host: str) -> float:
        """For how long the host has not answered; 0 for one that did, or is not known."""
        with self._lock:
            silence = self._silent.get(host)
            return self._clock() - silence.since if silence else 0.0

    def _forget(self) -> None:
        oldest = self._clock() - FORGOTTEN_SECONDS
        while self._silent:
            host = next(iter(self._silent))
            if self._silent[host].latest >= oldest and len(self._silent) <= MOST_SILENT:
                return
            del self._silent[host]

    def _leave(self, host: str) -> None:
        with self._lock:
            self._called[host] -= 1
            if not self._called[host]:
                del self._called[host]
