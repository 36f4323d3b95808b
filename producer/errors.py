"""Exceptions of the producer, in addition to the errors of `jobs.errors`.

jobs.errors.Error
├── TableError      a table cannot be read, or a file not be written: correct the file or the command
├── JobConflict     the id is taken by a job that asks for something else
├── QueueFull       as many jobs wait as may wait: submit again later
├── CallbackRefused a request is no callback of the service: answer 401 and do nothing
├── SetupError      this machine lacks something that an embedded run needs
└── WorkerFailed    the worker of an embedded run has stopped, or cannot load its model
"""

from __future__ import annotations

from jobs.errors import Error


class TableError(Error):
    """Raised when no row of a table can be trusted: a missing file or column, another encoding, broken quoting.

    Raised as well when a file that the command names cannot be written.
    """


class JobConflict(Error):
    """Raised when a job's id belongs to another job; ids are idempotency keys and never change their meaning."""


class QueueFull(Error):
    """Raised when the queue has reached `DG_MAX_QUEUED`; what was accepted before stays accepted."""


class CallbackRefused(Error):
    """Raised when a request that claims to be a callback is not signed, is old, or was meant for another receiver."""


class SetupError(Error):
    """Raised when a program or package that an embedded run needs is not installed."""


class WorkerFailed(Error):
    """Raised when the worker of an embedded run ends by itself; the message is the last thing it said."""
