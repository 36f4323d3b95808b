"""Puts right what a death left behind; every worker can, and once a second or so one of them does.

Three repairs, each harmless when it was not needed, since a claim drops a doubled message:
expired leases (the worker died), back-off that is over, and fewer messages in the queue than jobs that wait (one was
popped by a process that died before it could claim, or was never sent). A fourth comes with the turn
itself: moments that lie too far ahead because the clock of Redis was set back.
"""

from __future__ import annotations

import time

from jobs.ledger import MICROSECONDS, Expired, Ledger
from jobs.queue import EditQueue, count_messages
from worker.events import AttemptsUsedUp, Events, LeaseExpired, LostJobCancelled, MessageLost, Reconciled

INTERVAL_SECONDS = 2.0
TURN_SECONDS = 1.0
"""Once in so long somebody reconciles, however many workers there are.

Turns only save work, for every repair is atomic by itself: one whose taker dies is missed for no longer than this.
"""

GRACE_SECONDS = 4.0
"""Messages may be fewer than waiting jobs for this long: one may be on its way to the queue, or from it to a claim."""

SILENCE_SECONDS = 1.5 * INTERVAL_SECONDS
"""After a gap this long, leases look expired whose holders live: Redis was out of reach, or its clock was set ahead."""


class Reconciler:
    """Repairs the queue from the ledger."""

    def __init__(self, ledger: Ledger, queue: EditQueue, max_attempts: int, events: Events) -> None:
        self._events = events
        self._ledger = ledger
        self._queue = queue
        self._max_attempts = max_attempts
        self._reached_at = time.monotonic()
        self._reached_us: int | None = None

    def tick(self) -> None:
        """Repair once, unless another worker has just done so.

        Raises:
            BrokerUnavailable: Redis does not answer; the next tick does the work.
        """
        is_given, now_us = self._ledger.take_turn(TURN_SECONDS)
        if is_given:
            self.reconcile(now_us)
        self._reached_at, self._reached_us = time.monotonic(), now_us

    def reconcile(self, now_us: int) -> None:
        """Repair once, at this moment of the ledger's time."""
        started = time.monotonic()
        may_expire = self._seconds_since_reached(now_us) <= SILENCE_SECONDS
        expired = self._ledger.expire(self._max_attempts, now_us) if may_expire else Expired([], [], [])
        self._send([*expired.again, *self._ledger.promote()])
        lost = self._ledger.missing_messages(count_messages(self._ledger.redis), GRACE_SECONDS)
        self._send(lost)
        repairs = [
            *(LeaseExpired(job_id) for job_id in expired.again),
            *(AttemptsUsedUp(job_id) for job_id in expired.failed),
            *(LostJobCancelled(job_id) for job_id in expired.cancelled),
            *(MessageLost(job_id) for job_id in lost),
        ]
        for repair in repairs:
            self._events.send(repair)
        self._events.send(Reconciled(len(repairs), time.monotonic() - started))

    def _seconds_since_reached(self, now_us: int) -> float:
        """Since Redis was last reached, by the clock of Redis or our own, whichever saw more time go by."""
        by_redis = 0.0 if self._reached_us is None else (now_us - self._reached_us) / MICROSECONDS
        return max(by_redis, time.monotonic() - self._reached_at)

    def _send(self, job_ids: list[str]) -> None:
        if job_ids:  # or every worker would hold a connection for sending that it hardly ever needs
            self._queue.send(job_ids)
