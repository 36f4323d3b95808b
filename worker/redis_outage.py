"""Says once for a whole process that Redis is away, and rarely again, whoever notices it.

Several threads and Celery's consumer meet the same outage, each every few seconds.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Lock

from celery.worker.consumer import consumer

from worker.events import Events, RedisAway, RedisBack

REPEAT_SECONDS = 300.0

CANNOT_CONNECT: str = consumer.CONNECTION_ERROR  # type: ignore[attr-defined]  # unknown to its stubs
CHATTER: tuple[str, ...] = (consumer.CONNECTION_RETRY, "Skipping prefetch count reduction")  # type: ignore[attr-defined]
"""Beginnings of Celery's lines at a lost connection that tell an operator nothing."""


class RedisOutage:
    """The outage that the threads of this process are in, if any; they share one instance.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, events: Events, clock: Callable[[], float] = time.monotonic) -> None:
        self._events = events
        self._clock = clock
        self._lock = Lock()
        self._threads: set[str] = set()
        self._began_at = 0.0
        self._told_at: dict[str, float] = {}

    @property
    def is_on(self) -> bool:
        return bool(self._threads)

    def met(self, thread: str, reason: str) -> None:
        """Report the outage, unless it was for this reason in the last `REPEAT_SECONDS`."""
        with self._lock:
            now = self._clock()
            if not self._threads:
                self._began_at = now
            self._threads.add(thread)
            told_at = self._told_at.get(reason)
            is_news = told_at is None or now - told_at >= REPEAT_SECONDS
            if is_news:
                self._told_at[reason] = now
            is_first, seconds = len(self._told_at) == 1 and told_at is None, now - self._began_at
        if is_news:
            self._events.send(RedisAway(seconds, is_first, reason))

    def over(self, thread: str) -> None:
        """Report the end of the outage with the last thread that it is over for."""
        with self._lock:
            if thread not in self._threads:
                return
            self._threads.remove(thread)
            if self._threads:
                return
            self._told_at.clear()
            seconds = self._clock() - self._began_at
        self._events.send(RedisBack(seconds))


class ConsumerLines(logging.Filter):
    """Keeps Celery's consumer from telling again and again what is told already.

    Its own failure to connect stays while nobody else has noticed one: then it is news.
    """

    def __init__(self, outage: RedisOutage) -> None:
        super().__init__()
        self._outage = outage

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg == CANNOT_CONNECT:
            record.msg = "consumer: cannot connect to %s: %s %s"
            record.args = tuple(str(argument).strip() for argument in record.args or ())
            return not self._outage.is_on
        return not record.getMessage().startswith(CHATTER)


def quiet_consumer(outage: RedisOutage) -> None:
    """Let the consumer of this process speak through `ConsumerLines`."""
    logging.getLogger(consumer.__name__).addFilter(ConsumerLines(outage))
