"""Turns of the hosts that jobs name, so that one which says nothing does not hold up what goes to the others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Hosts:
    """Gives a host that did not answer lately one request at a time. Threads may share one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._silent: set[str] = set()
        self._called: dict[str, int] = {}

    @contextmanager
    def turn(self, host: str) -> Iterator[bool]:
        """Report whether the host may be called now; the call is made inside the `with` block."""
        with self._lock:
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
            (self._silent.add if is_silent else self._silent.discard)(host)

    def _leave(self, host: str) -> None:
        with self._lock:
            self._called[host] -= 1
            if not self._called[host]:
                del self._called[host]
