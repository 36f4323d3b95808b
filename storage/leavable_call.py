"""A call that may never return, in a thread that whoever waits for it can leave behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class LeavableCall(Generic[T]):
    """Calls a function in a daemon thread of its own, from now on.

    Args:
        name: of the thread.
    """

    def __init__(self, function: Callable[[], T], name: str) -> None:
        self._function = function
        self._answer: Future[T] = Future()
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_under_way(self) -> bool:
        return self._thread.is_alive()

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end, so many seconds at most, and report whether it has come."""
        self._thread.join(seconds)
        return not self.is_under_way

    def result(self) -> T:
        """Return what the function returned, or raise what it raised; waits for its end."""
        return self._answer.result()

    def _run(self) -> None:
        try:
            self._answer.set_result(self._function())
        except BaseException as error:
            self._answer.set_exception(error)
