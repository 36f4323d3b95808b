"""The registry of workers in Redis: each reports its own state, and a silent one drops out."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from json import dumps, loads
from pathlib import PurePath
from typing import cast

from redis import Redis
from redis.exceptions import ResponseError

from jobs.connection import redis_errors
from jobs.errors import BrokerRefused
from jobs.ledger.scripts import DEFAULT_PREFIX, redis_key
from jobs.queue import QUEUE
from jobs.worker_state import WorkerState

__all__ = ["WorkerInfo", "WorkerRegistry", "WorkerState"]

SILENT_AFTER_SECONDS = 15
"""A worker beats every second or so; one that has been silent this long is not listed."""

PREFIXES = redis_key(f"{QUEUE}:", "prefixes")
"""The prefixes of all workers on the queue, which all ledgers of a Redis share; kept as long as any of them beats."""


@dataclass(frozen=True)
class WorkerInfo:
    """One worker's report about itself.

    `jobs` are the ids it holds leases on; `faults_in_a_row` counts its latest runs that failed in the engine;
    `file_roots` are the folders that it may read, None for a worker that does not report them; `memory_bytes` is its
    device's memory in use; `last_error` names code and job of its latest run that failed.
    """

    name: str
    state: WorkerState
    detail: str = ""
    device: str = ""
    model: str = ""
    jobs: tuple[str, ...] = ()
    faults_in_a_row: int = 0
    file_roots: tuple[str, ...] | None = None
    memory_bytes: int = 0
    last_error: str = ""

    def may_read(self, path: PurePath) -> bool:
        """True if the worker may read a local file there, or does not say."""
        return self.file_roots is None or any(path.is_relative_to(root) for root in self.file_roots)


class WorkerRegistry:
    """Writes and reads the reports of workers; every method may raise `BrokerError`."""

    def __init__(self, redis: Redis, prefix: str = DEFAULT_PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix
        self._key = partial(redis_key, prefix)

    def beat(self, info: WorkerInfo) -> None:
        with redis_errors(self._redis), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(self._key("worker", info.name), dumps(asdict(info)), ex=SILENT_AFTER_SECONDS)
            pipeline.sadd(self._key("workers"), info.name)
            pipeline.sadd(PREFIXES, self._prefix)
            pipeline.pexpire(PREFIXES, SILENT_AFTER_SECONDS * 1000)
            pipeline.execute()

    def leave(self, name: str) -> None:
        with redis_errors(self._redis):
            self._redis.delete(self._key("worker", name))
            self._redis.srem(self._key("workers"), name)

    def strange_prefixes(self) -> list[str]:
        """Other `DG_KEY_PREFIX`es that workers on this queue have; meaningful while no worker has ours.

        They take the messages of our jobs and know none of them.
        """
        try:
            with redis_errors(self._redis):
                return sorted(cast("set[str]", self._redis.smembers(PREFIXES)) - {self._prefix})
        except BrokerRefused:  # rights that were written by hand
            return []

    def workers(self) -> list[WorkerInfo]:
        """The workers that reported lately, by name; silent ones are removed."""
        with redis_errors(self._redis):
            names = sorted(cast("set[str]", self._redis.smembers(self._key("workers"))))
            if not names:
                return []
            reports = cast("list[str | None]", self._redis.mget([self._key("worker", name) for name in names]))
            silent = [name for name, report in zip(names, reports, strict=True) if report is None]
            if silent:
                with suppress(ResponseError):  # a Redis that cannot write now still tells who is there
                    self._redis.srem(self._key("workers"), *silent)
        return [_parse(report) for report in reports if report is not None]


def _parse(report: str) -> WorkerInfo:
    """Read a report, also one of an older or newer worker: absent fields have their defaults, unknown ones go."""
    known = {field.name for field in fields(WorkerInfo)}
    given = {name: value for name, value in loads(report).items() if name in known}
    roots = given.get("file_roots")
    return WorkerInfo(
        **{
            **given,
            "state": _state(given["state"]),
            "jobs": tuple(given.get("jobs", ())),
            "file_roots": None if roots is None else tuple(roots),
        }
    )


def _state(name: str) -> WorkerState:
    """A state that only newer workers have means, to us, a worker that does something."""
    try:
        return WorkerState(name)
    except ValueError:
        return WorkerState.BUSY
