"""Keeps slow inputs to half of the threads of a worker, so that the other half can feed the GPU.

An input may come slowly for minutes, within its limits, and its job holds a thread meanwhile. If all threads were held
so, every other job would wait. So a job whose inputs are not there after some seconds needs one of a few places; one
that gets none goes back to the queue and comes again later, as after an outage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from jobs.errors import Outage
from storage.store import INPUT


@dataclass(eq=False)
class Fetch:
    """A job that gets its inputs."""

    tenant: str | None
    began_at: float
    is_driven_out: bool = False


class SlowInputs:
    """The places of slow fetches; threads may share one.

    Args:
        threads: of the worker; half of them, but at least one, may wait for slow inputs.
        slow_seconds: a fetch that lasts longer is slow.
        clock: seconds, for tests.
    """

    def __init__(self, threads: int, slow_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = max(1, threads // 2)
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._lock = Lock()
        self._slow: list[Fetch] = []

    @contextmanager
    def fetch(self, tenant: str | None) -> Iterator[Callable[[], None]]:
        """Get a job's inputs in the block; it calls what it is given again and again, which may raise Outage."""
        fetch = Fetch(tenant, self._clock())
        try:
            yield lambda: self._check(fetch)
        finally:
            with self._lock:
                if fetch in self._slow:
                    self._slow.remove(fetch)

    def _check(self, fetch: Fetch) -> None:
        with self._lock:
            if fetch in self._slow or self._clock() - fetch.began_at <= self._slow_seconds:
                return
            if not fetch.is_driven_out and len(self._slow) >= self._places:
                self._drive_out_one_of_many(fetch.tenant)
            if fetch.is_driven_out or len(self._slow) >= self._places:
                late = f"its inputs are not here after {self._slow_seconds:g} s (DG_INPUT_STALL_SECONDS)"
                others = f"as many other jobs of this worker as may ({self._places}) wait for slow ones"
                raise Outage(INPUT.unavailable, f"{late}, and {others}; a later try may do")
            self._slow.append(fetch)

    def _drive_out_one_of_many(self, tenant: str | None) -> None:
        """Free a place for this tenant if another one has at least two more."""
        counts = Counter(fetch.tenant for fetch in self._slow)
        most, count = counts.most_common(1)[0]
        if count >= counts[tenant] + 2:
            loser = [fetch for fetch in self._slow if fetch.tenant == most][-1]  # which has waited least
            loser.is_driven_out = True
            self._slow.remove(loser)
