"""The ledger's own maintenance, for the reconciler: silent workers, back-off, lost messages."""

from __future__ import annotations

from typing import NamedTuple, cast

from jobs.connection import redis_errors
from jobs.errors import ErrorCode
from jobs.ledger.record import CANCELLED, failure
from jobs.ledger.scripts import MICROSECONDS, Scripts

MOST_LOSSES = 10
"""Workers that may be lost with a job before any of them worked on it; it then fails."""


class Expired(NamedTuple):
    """Ids of the jobs that silent workers had: to be sent again, failed for good, and cancelled as was asked for."""

    again: list[str]
    failed: list[str]
    cancelled: list[str]


class Repairs:
    """Finds the jobs that a worker or the queue has lost and brings them back."""

    def __init__(self, scripts: Scripts) -> None:
        self.scripts = scripts

    def take_turn(self, pause_seconds: float) -> tuple[bool, int]:
        """Ask for the next turn among all reconcilers.

        Timestamps too far in the future are corrected: the clock of Redis was set back since the last turn.

        Args:
            pause_seconds: shortest time between two turns, whichever worker takes them.
        Returns:
            True when the turn is granted, and the ledger's time in microseconds.
        """
        is_granted, now = self.scripts.run("take_turn", int(pause_seconds * MICROSECONDS))
        return bool(is_granted), int(now)

    def expire(self, max_attempts: int, until_us: int = 0, limit: int = 1000) -> Expired:
        """Take jobs from silent workers.

        A job that was being worked on has spent an attempt. One that only waited in the worker has not, up to
        `MOST_LOSSES` times. Both are taken before all others, except a job that was being worked on for the second
        time: it goes to the end of its line.

        Args:
            until_us: leases that ended later are left alone, which guards against a clock jump since the caller read
                the time; 0: now.
        """
        exhausted = f"the worker died or went silent in the last of {max_attempts} attempts"
        unlucky = f"{MOST_LOSSES + 1} workers died or went silent before any of them worked on it"
        outcomes = [failure(ErrorCode.WORKER_LOST, reason, retryable=True) for reason in (exhausted, unlucky)]
        return Expired(*self.scripts.run("expire", limit, max_attempts, *outcomes, CANCELLED, until_us, MOST_LOSSES))

    def promote(self, limit: int = 1000) -> list[str]:
        """Move jobs whose back-off is over to the queue; returns the ids to send."""
        return cast("list[str]", self.scripts.run("promote", limit))

    def oldest_queued(self, limit: int, sent_before_us: float | None = None) -> list[str]:
        """Ids of the queued jobs whose messages were sent first, up to a timestamp in microseconds."""
        with redis_errors(self.scripts.redis):
            before = "+inf" if sent_before_us is None else sent_before_us
            return cast(
                "list[str]", self.scripts.redis.zrangebyscore(self.scripts.key("queued"), "-inf", before, 0, limit)
            )

    def missing_messages(self, messages: int, grace_seconds: float, limit: int = 500) -> list[str]:
        """Ids to send messages for, as many as the queue has too few.

        A message says only that one more job waits, so what counts is their number: that of the waiting jobs.

        Args:
            messages: how many are in the queue.
            grace_seconds: how long they may be too few, since one may be on its way to or from the queue.
        """
        return cast("list[str]", self.scripts.run("missing", messages, int(grace_seconds * MICROSECONDS), limit))
