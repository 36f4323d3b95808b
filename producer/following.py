"""Following one job to its end: which looks at it are news, and how long to wait between two."""

from __future__ import annotations

import time
from collections.abc import Iterator

from jobs.ledger import JobRecord

FIRST_POLL_SECONDS = 0.05
LONGEST_POLL_SECONDS = 1.0
POLL_GROWTH = 1.3


def pauses() -> Iterator[float]:
    """Seconds between two looks, growing from `FIRST_POLL_SECONDS` to `LONGEST_POLL_SECONDS`."""
    pause = FIRST_POLL_SECONDS
    while True:
        yield pause
        pause = min(pause * POLL_GROWTH, LONGEST_POLL_SECONDS)


class Following:
    """The looks at one job that somebody waits for; the caller makes them and sleeps in between.

    Args:
        timeout_seconds: how long somebody waits from now on; None: for ever.
        closely: look often again after each change, to show progress as it comes.
    """

    def __init__(self, timeout_seconds: float | None = None, closely: bool = False) -> None:
        self._timeout_seconds = timeout_seconds
        self._deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._closely = closely
        self._pauses = pauses()
        self._seen: object = None

    def is_news(self, record: JobRecord) -> bool:
        """True if state, attempt or progress have changed since the look before."""
        shown = (record.state, record.attempts, record.retries, record.progress, record.cancel_requested)
        if shown == self._seen:
            return False
        if self._closely:
            self._pauses = pauses()
        self._seen = shown
        return True

    def pause(self, record: JobRecord) -> float:
        """Seconds until the next look.

        Raises:
            TimeoutError: the time is over.
        """
        if self._deadline is None:
            return next(self._pauses)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"job {record.job.id!r} is still {record.state} after {self._timeout_seconds} s")
        return min(next(self._pauses), left)
