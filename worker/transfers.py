"""Runs what waits for other machines in threads that a job can leave.

A source that accepts and says nothing, or a byte now and then, would otherwise hold its job, and a cancel, a deadline
or a drain would have no effect until it is done. A transfer that is left loses its connection and so ends at once; only
what the system cannot interrupt, such as a call to a file server that is away, lingers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Any, TypeVar

from jobs.errors import Outage
from storage.leavable_call import LeavableCall
from storage.store import Side
from storage.transfer import Transfer
from storage.uris import scheme_of, show_uri

T = TypeVar("T")

POLL_SECONDS = 0.25
"""How often a job that waits for a transfer checks for cancellation."""

LONGEST_SECONDS = 150.0
"""For one input or one upload. For inputs `storage` has its own limit, which is shorter and tells more."""

MOST_LINGERING = 32
"""Transfers of one kind of storage that were left and linger; with so many of them the next one would linger too."""


class Transfers:
    """Calls functions that wait; threads may share one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._left: list[tuple[str, LeavableCall[Any]]] = []

    def run(
        self,
        uri: str,
        side: Side,
        function: Callable[[], T],
        check: Callable[[], None],
        longest_seconds: float = LONGEST_SECONDS,
    ) -> T:
        """Call a function in a thread of its own and return what it returns, or raise what it raises.

        Args:
            uri: what it reads or writes; a transfer waits for no other, of whatever URI.
            check: called while waiting; what it raises ends the wait and the transfer.
        Raises:
            Outage: it is not done within `longest_seconds`, or `MOST_LINGERING` transfers of this scheme hang in calls
                that cannot be interrupted.
        """
        if self._lingering(scheme_of(uri)) >= MOST_LINGERING:
            raise Outage(side.unavailable, f"{show_uri(uri)}: {MOST_LINGERING} others hang; a later try may do")
        transfer = Transfer()
        call = LeavableCall(lambda: _call(transfer, function), "transfer")
        deadline = time.monotonic() + longest_seconds
        try:
            while not call.ends_within(min(POLL_SECONDS, longest_seconds)):
                check()
                if time.monotonic() > deadline:
                    message = f"{show_uri(uri)}: not done within {longest_seconds:g} s; a later try may do"
                    raise Outage(side.unavailable, message)
        except BaseException:
            self._leave(transfer, scheme_of(uri), call)
            raise
        return call.result()

    def _leave(self, transfer: Transfer, scheme: str, call: LeavableCall[Any]) -> None:
        with self._lock:
            self._left.append((scheme, call))
        transfer.leave()

    def _lingering(self, scheme: str) -> int:
        with self._lock:
            self._left = [(known, call) for known, call in self._left if call.is_under_way]
            return sum(known == scheme for known, _ in self._left)


def _call(transfer: Transfer, function: Callable[[], T]) -> T:
    with transfer.under_way():
        return function()
