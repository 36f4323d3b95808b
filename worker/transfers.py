"""Runs what waits for other machines in threads that a job can leave.

A source that accepts and says nothing would otherwise hold its job, and a cancel, a deadline or a drain would have no
effect until it speaks. A transfer that was left ends by itself, at the latest when its source has been silent for
`DG_INPUT_STALL_SECONDS`; only so many may hang at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from threading import BoundedSemaphore, Thread
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.25
"""How often a job that waits for a transfer checks for cancellation."""

MOST_AT_ONCE = 32
"""Transfers under way, those that were left included."""


class Transfers:
    """Calls functions that wait; threads may share one."""

    def __init__(self) -> None:
        self._slots = BoundedSemaphore(MOST_AT_ONCE)

    def run(self, function: Callable[[], T], check: Callable[[], None]) -> T:
        """Call a function in a thread of its own and return what it returns, or raise what it raises.

        Args:
            check: called while waiting; what it raises ends the wait.
        """
        while not self._slots.acquire(timeout=POLL_SECONDS):
            check()
        result: Future[T] = Future()
        Thread(target=self._call, args=(function, result), name="transfer", daemon=True).start()
        while True:
            try:
                return result.result(POLL_SECONDS)
            except NotYet:
                if result.done():  # the function itself raised it
                    raise
                check()

    def _call(self, function: Callable[[], T], result: Future[T]) -> None:
        try:
            result.set_result(function())
        except BaseException as error:
            result.set_exception(error)
        finally:
            self._slots.release()
