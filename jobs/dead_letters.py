"""Dead letters: messages that are none of ours, kept for inspection.

A malformed message must end no worker and hold up no job. It leaves the queue for a bounded list in Redis, with the
reason, where `producer dead-letters` shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import cast

from redis import Redis

from jobs.connection import redis_errors

MOST_LETTERS = 1000
"""Length of the list; beyond it the oldest is forgotten."""

LONGEST_MESSAGE = 16_384
"""Characters of a message that are kept."""


@dataclass(frozen=True)
class DeadLetter:
    """A message that was put aside; `at` is seconds since 1970 by the clock of Redis."""

    at: float
    reason: str
    worker: str
    size_bytes: int
    message: str


class DeadLetters:
    """The list of dead letters, newest first.

    Every method raises `BrokerError` when Redis does not answer or refuses.
    """

    def __init__(self, redis: Redis, key: str) -> None:
        self._redis = redis
        self._key = key

    def put(self, message: bytes, reason: str, worker: str) -> None:
        """Keep the beginning of a message and why it was put aside."""
        shown = message[:LONGEST_MESSAGE].decode(errors="backslashreplace")
        with redis_errors(self._redis), self._redis.pipeline(transaction=True) as pipeline:
            seconds, microseconds = self._redis.time()  # a worker's own clock may be wrong
            letter = DeadLetter(seconds + microseconds / 1e6, reason, worker, len(message), shown)
            pipeline.lpush(self._key, json.dumps(asdict(letter)))
            pipeline.ltrim(self._key, 0, MOST_LETTERS - 1)
            pipeline.execute()

    def count(self) -> int:
        with redis_errors(self._redis):
            return int(self._redis.llen(self._key))

    def __iter__(self) -> Iterator[DeadLetter]:
        with redis_errors(self._redis):
            letters = cast("list[str]", self._redis.lrange(self._key, 0, -1))
        return (DeadLetter(**json.loads(letter)) for letter in letters)

    def drop(self) -> int:
        """Forget all dead letters and return how many there were."""
        with redis_errors(self._redis), self._redis.pipeline(transaction=True) as pipeline:
            pipeline.llen(self._key)
            pipeline.delete(self._key)
            return int(pipeline.execute()[0])
