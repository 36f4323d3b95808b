"""Puts right what a death left behind; every worker can, and once a second or so one of them does.

Three repairs, each harmless when it was not needed, since a claim drops a doubled message:
expired leases (the worker died), back-off that is over, and jobs that wait without a message in the queue (the
message was popped by a process that died before it could claim, or was never sent).
"""

from __future__ import annotations

import logging
import time

from jobs.connection import redis_errors
from jobs.ledger import MICROSECONDS, Ledger
from jobs.queue import EditQueue, next_messages

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
LOCK_SECONDS = 1
"""Once in so long somebody reconciles, however many workers there are; nobody lets go of the lock before.

It only saves work, for what it guards is atomic by itself: so it may run out early, and with a dead holder soon.
"""

GRACE_US = 5 * MICROSECONDS
"""A message may take this long from being sent to being claimed before it counts as lost."""

SILENCE_SECONDS = 1.5 * INTERVAL_SECONDS
"""After Redis was out of reach for longer, leases look expired whose holders live and could not renew them."""

MESSAGES_LOOKED_AT = 200
JOBS_REPAIRED = 500


class Reconciler:
    """Repairs the queue from the ledger."""

    def __init__(self, ledger: Ledger, queue: EditQueue, max_attempts: int) -> None:
        self._ledger = ledger
        self._queue = queue
        self._max_attempts = max_attempts
        self._lock_key = f"{ledger.prefix}lock:reconciler"
        self._reached_at = time.monotonic()

    def tick(self) -> None:
        """Repair once, unless another worker has just done so.

        Raises:
            BrokerUnavailable: Redis does not answer; the next tick does the work.
        """
        with redis_errors(self._ledger.redis):
            is_mine = self._ledger.redis.set(self._lock_key, "held", nx=True, ex=LOCK_SECONDS)
        if is_mine:
            self.reconcile()
        self._reached_at = time.monotonic()

    def reconcile(self) -> None:
        """Repair once."""
        was_silent = time.monotonic() - self._reached_at > SILENCE_SECONDS
        again, ended = ([], []) if was_silent else self._ledger.expire(self._max_attempts)
        self._send([*again, *self._ledger.promote()])
        lost = self._ledger.resend(self.lost_jobs())
        self._send(lost)
        for event, job_ids in (("lease_expired", again), ("attempts_used_up", ended), ("message_lost", lost)):
            for job_id in job_ids:
                log.warning("%s job=%s", event, job_id)

    def _send(self, job_ids: list[str]) -> None:
        if job_ids:  # or every worker would hold a connection for sending that it hardly ever needs
            self._queue.send(job_ids)

    def lost_jobs(self) -> list[str]:
        """Ids of jobs that wait although their message is gone.

        The queue is first in, first out. So a job that was sent clearly before the one at the head of the queue, and
        still waits, has no message. When the whole queue fits into one look, the messages in it settle the matter.
        """
        latest = self._ledger.now_us() - GRACE_US
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
