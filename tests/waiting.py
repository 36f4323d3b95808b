"""Waiting for what other threads and processes do, without guessing how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.01


def eventually(predicate: Callable[[], T], timeout_seconds: float = 30, *, what: str = "") -> T:
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


def passing(seconds: float) -> None:
    """Let time pass where its length is the point, as that of a fault."""
    time.sleep(seconds)
