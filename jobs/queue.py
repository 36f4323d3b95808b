"""The queue of edits.

A message says only "one more job waits". Which one its taker gets is decided by the ledger, so a message that is lost,
doubled or damaged harms no job in particular; the id that it carries is a hint for the log. There is no result backend,
no ETA task and no revoke: results, delays and cancellation are the ledger's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from redis import Redis

from jobs.connection import redis_errors
from jobs.ledger.scripts import chunks

QUEUE = "edits"
TASK = "worker.tasks.edit"
MESSAGES_AT_ONCE = 500

LISTS = (QUEUE, *(f"{QUEUE}\x06\x16{priority}" for priority in (3, 6, 9)))
"""The lists in Redis that kombu keeps for the queue, one for each step of a client's Celery priority."""


class EditQueue:
    """Sends the messages of jobs that are in the ledger.

    Written here rather than by Celery, in the form that the contract gives for languages without it: a message takes
    Celery fifteen times as long, more than the rest of a submission.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def send(self, job_ids: Iterable[str]) -> int:
        """Send one message per job and return how many; the reconciler sends as many as are lost on the way.

        Raises:
            BrokerError: of the messages an unknown number was sent.
        """
        sent = 0
        with redis_errors(self._redis):
            for some in chunks(map(_message, job_ids), MESSAGES_AT_ONCE):
                self._redis.lpush(QUEUE, *some)
                sent += len(some)
        return sent


def _message(job_id: str) -> str:
    """The item of the list: Celery's message protocol 2 in kombu's envelope, with what Celery cannot do without."""
    return json.dumps(
        {
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": TASK, "id": job_id},
            "properties": {"delivery_tag": job_id, "delivery_info": {"exchange": "", "routing_key": QUEUE}},
            "body": json.dumps([[job_id], {}, None]),
        }
    )


def count_messages(redis: Redis) -> int:
    """Count the messages in the queue."""
    with redis_errors(redis), redis.pipeline(transaction=False) as pipeline:
        for name in LISTS:
            pipeline.llen(name)
        return sum(pipeline.execute())


def next_messages(redis: Redis, limit: int) -> list[str]:
    """Look at the ids in up to `limit` messages that will be taken next, without taking them."""
    with redis_errors(redis):
        return [_message_id(message) for message in redis.lrange(QUEUE, -limit, -1)]


def _message_id(message: str | bytes) -> str:
    """The task id of a message, "" when it is of an older protocol and has none."""
    try:
        return str(json.loads(message)["headers"]["id"])
    except (ValueError, KeyError, TypeError):
        return ""
