"""The ledger's scripts in Redis, its keys and its clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from typing import Any, TypeVar

from redis import Redis

from jobs.connection import redis_errors

SCRIPTS = (
    *("submit", "claim", "spend", "renew", "finish", "requeue", "cancel", "retry", "position"),
    *("take_turn", "expire", "promote", "missing", "take_callbacks", "settle_callback", "revise_callback"),
)
PIPELINE_LENGTH = 500
"""Jobs per pipeline: long enough to hide the round trip, short enough to stay under a megabyte."""

MICROSECONDS = 1_000_000
DEFAULT_PREFIX = "dg:"

T = TypeVar("T")


def redis_key(prefix: str, *parts: str) -> str:
    """The key of a name in Redis: no two lists of parts share one, since in a part `:` is written `%3A`.

    The only place in Python that spells a key; its twin for the scripts is `key` in `lua/common.lua`.
    """
    return prefix + ":".join(part.replace("%", "%25").replace(":", "%3A") for part in parts)


class Scripts:
    """Runs the scripts of `lua/`; every method raises `BrokerError` when Redis does not answer or refuses.

    Args:
        redis: a client that decodes responses.
        prefix: start of every key.
        retention_seconds: how long an ended job is kept.
        clock: microseconds since 1970, for tests; None uses the clock of the Redis server, the only one all share.
    """

    def __init__(self, redis: Redis, prefix: str, retention_seconds: float, clock: Callable[[], int] | None) -> None:
        self.redis = redis
        self._prefix = prefix
        self._retention_us = int(retention_seconds * MICROSECONDS)
        self._clock = clock or (lambda: 0)
        self._scripts = {name: redis.register_script(source(name)) for name in SCRIPTS}

    def key(self, *parts: str) -> str:
        """The key of this name in Redis."""
        return redis_key(self._prefix, *parts)

    def run(self, name: str, *arguments: Any) -> Any:
        """Run one of `SCRIPTS` and return its answer."""
        with redis_errors(self.redis):
            return self._scripts[name](*self._call(arguments))

    def run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Run one script for each row of arguments in one round trip and return the answers."""
        with redis_errors(self.redis), self.redis.pipeline(transaction=False) as pipeline:
            for row in rows:
                self._scripts[name](*self._call(row), client=pipeline)
            return pipeline.execute()

    def now_us(self) -> int:
        """The ledger's time in microseconds."""
        with redis_errors(self.redis):
            seconds, microseconds = self.redis.time()
            return self._clock() or seconds * MICROSECONDS + microseconds

    def _call(self, arguments: Sequence[Any]) -> tuple[list[str], list[Any]]:
        return [self._prefix], [self._clock(), self._retention_us, *arguments]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into lists of `size`; the last one may be shorter."""
    chunk: list[T] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def source(name: str) -> str:
    """Text of a script of `lua/`, after what all of them share."""
    folder = resources.files("jobs.ledger") / "lua"
    return (folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text()
