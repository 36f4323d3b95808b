"""Puts right what a death left behind; every worker can, and once a second or so one of them does.

Three repairs, each harmless when it was not needed, since a claim drops a doubled message:
expired leases (the worker died), back-off that is over, and jobs that wait without a message in the queue (the
message was popped by a process that died before it could claim, or was never sent). A fourth comes with the turn
itself: moments that lie too far ahead because the clock of Redis was set back.
"""

from __future__ import annotations

import time

from jobs.ledger import MICROSECONDS, Ledger
from jobs.queue import EditQueue, next_messages
from worker.events import AttemptsUsedUp, Events, LeaseExpired, MessageLost, Reconciled

INTERVAL_SECONDS = 2.0
TURN_SECONDS = 1.0
"""Once in so long somebody reconciles, however many workers there are.

Turns only save work, for every repair is atomic by itself: one whose taker dies is missed for no longer than this.
"""

GRACE_US = 5 * MICROSECONDS
"""A message may take this long from being sent to being claimed before it counts as lost."""

SILENCE_SECONDS = 1.5 * INTERVAL_SECONDS
"""After a gap this long, leases look expired whose holders live: Redis was out of reach, or its clock was set ahead."""

MESSAGES_LOOKED_AT = 200
JOBS_REPAIRED = 500


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
        again, ended = self._ledger.expire(self._max_attempts, now_us) if may_expire else ([], [])
        self._send([*again, *self._ledger.promote()])
        lost = self._ledger.resend(self.lost_jobs(now_us))
        self._send(lost)
        for kind, job_ids in ((LeaseExpired, again), (AttemptsUsedUp, ended), (MessageLost, lost)):
            for job_id in job_ids:
                self._events.send(kind(job_id))
        self._events.send(Reconciled(len(again) + len(ended) + len(lost), time.monotonic() - started))

    def _seconds_since_reached(self, now_us: int) -> float:
        """Since Redis was last reached, by the clock of Redis or our own, whichever saw more time go by."""
        by_redis = 0.0 if self._reached_us is None else (now_us - self._reached_us) / MICROSECONDS
        return max(by_redis, time.monotonic() - self._reached_at)

    def _send(self, job_ids: list[str]) -> None:
        if job_ids:  # or every worker would hold a connection for sending that it hardly ever needs
            self._queue.send(job_ids)

    def lost_jobs(self, now_us: int) -> list[str]:
        """Ids of jobs that wait although their message is gone.

        The queue is first in, first out. So a job that was sent clearly before the one at the head of the queue, and
        still waits, has no message. When the whole queue fits into one look, the messages in it settle the matter.
        """
        latest = now_us - GRACE_US
        if not self._ledger.oldest_queued(1, latest):
            return []
        next_ids, is_all = next_messages(self._ledger.redis, MESSAGES_LOOKED_AT)
        if not is_all:
            sent = [moment for moment in self._ledger.sent_at(next_ids) if moment is not None]
            if not sent:
                return []  # only messages of other clients at the head: wait until they are taken
            latest = min(latest, int(min(sent)) - GRACE_US)
        in_queue = set(next_ids)
        return [job_id for job_id in self._ledger.oldest_queued(JOBS_REPAIRED, latest) if job_id not in in_queue]
