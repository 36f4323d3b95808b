"""Waiting for what other threads and processes do, without guessing how long it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01
PATIENCE_SECONDS = 120
"""Far longer than anything takes: how long a broken thing is waited for, however busy the machine is."""


def eventually(predicate: Callable[[], T], timeout_seconds: float = PATIENCE_SECONDS, *, what: str = "") -> T:
    """Ask again and again until the answer is true, and return it.

    Raises:
        AssertionError: the answer was still false after `timeout_seconds`; the message has `what` and the last answer.
    """
    deadline = time.monotonic() + timeout_seconds
    while not (answer := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what or predicate} (last answer: {answer!r})")
        time.sleep(POLL_SECONDS)
    return answer


def stretched(seconds: float) -> float:
    """A promised time, longer by as many times as processes share a core now; at least by half.

    A promise is made for a machine that does its work alone. Benchmarks measure its figure; a test only has to tell a
    promise that is kept from one that is broken.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return seconds * max(1.5, 2 * os.getloadavg()[0] / cores)


def passing(seconds: float) -> None:
    """Let time pass where its length is the point, as that of a fault."""
    time.sleep(seconds)
