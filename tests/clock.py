"""A clock that moves only when a test says so."""

from __future__ import annotations


class ManualClock:
    """Microseconds since 1970, as the ledger asks for them."""

    def __init__(self) -> None:
        self._now_us = 1_800_000_000_000_000

    def __call__(self) -> int:
        self._now_us += 1  # two events are never at the same moment, unless the clock was set back
        return self._now_us

    @property
    def last_us(self) -> int:
        """The moment that was told last."""
        return self._now_us

    def set_back(self, seconds: float) -> None:
        """Jump, as a clock does that was wrong: what has happened since then lies in the future."""
        self._now_us -= int(seconds * 1_000_000)

    def advance(self, seconds: float) -> None:
        self._now_us += int(seconds * 1_000_000)
