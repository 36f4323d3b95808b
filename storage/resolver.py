"""Numeric addresses of hosts, within a time limit and for whom can be left."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from threading import BoundedSemaphore
from typing import Any

import httpcore2

from storage.leavable_call import LeavableCall
from storage.transfer import check_not_left

DNS_SECONDS = 10.0
MOST_LOOKUPS = 64
LOOKUPS = BoundedSemaphore(MOST_LOOKUPS)

POLL_SECONDS = 0.25
"""How often a wait for DNS checks whether its transfer was left."""


def resolve(host: str, port: int, seconds: float = DNS_SECONDS) -> list[str]:
    """The numeric addresses of a host, in the order in which to try them.

    The system's resolver knows no time limit of ours and cannot be interrupted, so it runs in a thread that is left
    behind when the time is over. `MOST_LOOKUPS` of them may hang at once.

    Raises:
        httpcore2.ConnectError: the name has no address.
        httpcore2.ConnectTimeout: no DNS server answered in time.
        TransferLeft: nobody waits for it any more.
    """
    late = httpcore2.ConnectTimeout(f"cannot find the address of {host}: DNS does not answer within {seconds:.0f} s")
    deadline = time.monotonic() + seconds
    _wait(lambda pause: LOOKUPS.acquire(timeout=pause), deadline, late)
    lookup = LeavableCall(lambda: _look_up(host, port), "dns")
    _wait(lookup.ends_within, deadline, late)
    try:
        found = lookup.result()
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"cannot find the address of {host}: {error}") from error
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


def _look_up(host: str, port: int) -> list[Any]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    finally:
        LOOKUPS.release()


def _wait(is_over: Callable[[float], bool], deadline: float, late: Exception) -> None:
    """Ask `is_over`, which waits for as many seconds as it is given, until it is."""
    while not is_over(max(0.0, min(POLL_SECONDS, deadline - time.monotonic()))):
        check_not_left()
        if time.monotonic() >= deadline:
            raise late
