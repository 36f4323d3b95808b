"""Keeps a suspect apart: a job that was being worked on when a worker was lost runs alone next time.

Ordinary jobs overlap: while one samples, its neighbour uploads. Should one of them kill the process, both pay an
attempt. So a job that may do that waits on the GPU until nobody else works here, and lets nobody begin before it has
ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

POLL_SECONDS = 0.25
"""How often a waiting job checks for cancellation."""


class Isolation:
    """A lock that ordinary jobs share and that a suspect has alone."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._working = 0
        self._suspects_waiting = 0
        self._is_alone = False

    @contextmanager
    def work(self, is_suspect: bool, check: Callable[[], None]) -> Iterator[None]:
        """Work on a job for the length of the block, alone if it is a suspect.

        Args:
            check: called while waiting; what it raises ends the wait.
        """
        with self._condition:
            self._suspects_waiting += is_suspect
            try:
                while not self._may_begin(is_suspect):
                    check()
                    self._condition.wait(POLL_SECONDS)
                self._working += 1
                self._is_alone = is_suspect
            finally:
                self._suspects_waiting -= is_suspect
        try:
            yield
        finally:
            with self._condition:
                self._working -= 1
                self._is_alone = False
                self._condition.notify_all()

    def _may_begin(self, is_suspect: bool) -> bool:
        if is_suspect:
            return self._working == 0
        return not self._is_alone and self._suspects_waiting == 0  # or a suspect would wait as long as others come
