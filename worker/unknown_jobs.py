"""Says when messages name jobs that the ledger does not know.

One such message is nothing: its job may have ended and be forgotten. Many of them, at a producer whose jobs wait for
ever, mean that it writes to another ledger on the same queue: `DG_KEY_PREFIX` is not the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock

from worker.events import Events, JobsUnknown

PAUSE_SECONDS = 60.0
"""A table of 100,000 rows under another prefix is one line a minute, not one for each row."""

REMEDY = "unless they ended long ago, give producers and workers the same DG_KEY_PREFIX"


class UnknownJobs:
    """Counts such messages; threads may share one.

    Args:
        key_prefix: where the ledger of this worker lies.
        clock: seconds that only grow.
    """

    def __init__(self, key_prefix: str, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._key_prefix = key_prefix
        self._events = events
        self._clock = clock
        self._lock = Lock()
        self._count = 0
        self._told_at: float | None = None

    def note(self, job_id: str) -> None:
        """Count a message, and say how many have come unless that was just said."""
        with self._lock:
            self._count += 1
            now = self._clock()
            if self._told_at is not None and now - self._told_at < PAUSE_SECONDS:
                return
            count, self._count, self._told_at = self._count, 0, now
        self._events.send(JobsUnknown(count, job_id, self._key_prefix, REMEDY))
