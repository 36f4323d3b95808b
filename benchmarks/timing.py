"""Clocks of the benchmarks: seconds of one call, several calls that take turns, the highest value while others work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

Measured = TypeVar("Measured")


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def take_turns(works: Mapping[str, Callable[[], Measured]], repetitions: int) -> dict[str, list[Measured]]:
    """Results of all works, called several times, to and fro.

    Whatever else the machine does meets all of them, and so does what the one before leaves in caches and free memory.
    """
    results: dict[str, list[Measured]] = {name: [] for name in works}
    order = list(works)
    for _ in range(repetitions):
        for name in order:
            results[name].append(works[name]())
        order.reverse()
    return results


@contextmanager
def highest(read: Callable[[], dict[str, int]], every_seconds: float) -> Iterator[dict[str, int]]:
    """Read values again and again within the context; the yielded dictionary holds the highest of each."""
    most = read()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_seconds):
            most.update({name: max(most[name], value) for name, value in read().items()})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        ended.set()
        watcher.join()
