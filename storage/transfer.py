"""A transfer that another thread can end at once, whatever the other side does.

What waits for another machine waits in a system call that no flag interrupts. So a transfer keeps a second descriptor
of the connection that it uses; whoever leaves it shuts the connection down by that one, and the call returns. The
libraries between a source and its connection pass no argument of ours on: a thread's transfer is a context variable.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from threading import Lock


class TransferLeft(Exception):
    """Raised in the thread of a transfer that nobody waits for any more."""


class Transfer:
    """Reads of inputs, or one upload, that go on until they end or are left."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_left = False
        self._connection: socket.socket | None = None

    @property
    def is_left(self) -> bool:
        return self._is_left

    def leave(self) -> None:
        """End it: its connection is shut down now, and it gets no other."""
        with self._lock:
            self._is_left = True
            if self._connection is not None:
                with suppress(OSError):  # the other side has hung up
                    self._connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Make it the transfer of this thread for the length of the block."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)
            self._keep(None)

    def check(self) -> None:
        """Raise TransferLeft if it was left."""
        if self._is_left:
            raise TransferLeft

    def use(self, connection: socket.socket) -> None:
        """Keep a second descriptor of the connection that it uses from now on, connected or about to be."""
        self._keep(connection.dup())
        self.check()

    def _keep(self, connection: socket.socket | None) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = connection


_CURRENT: ContextVar[Transfer | None] = ContextVar("transfer", default=None)


def check_not_left() -> None:
    """Raise TransferLeft if this thread's transfer was left; outside of transfers do nothing."""
    if transfer := _CURRENT.get():
        transfer.check()


def use_connection(connection: socket.socket) -> None:
    """Let whoever leaves this thread's transfer end this connection; outside of transfers do nothing.

    Raises:
        TransferLeft: it was left already.
    """
    if transfer := _CURRENT.get():
        transfer.use(connection)
