"""Exit codes of the commands, for scripts."""

from __future__ import annotations

from enum import IntEnum

from jobs.errors import BrokerError, Error
from producer.errors import QueueFull, WorkerFailed


class ExitCode(IntEnum):
    """Exit codes of every `producer` command."""

    OK = 0
    INCOMPLETE = 1
    """Some rows were refused, or some jobs failed, were cancelled or conflict."""
    BAD_INPUT = 2
    """The command line, the table or a setting cannot be used; nothing was queued."""
    BROKER_UNAVAILABLE = 3
    QUEUE_FULL = 4
    WORKER_FAILED = 5
    """The worker of an embedded run stopped."""
    INTERRUPTED = 130
    """Ctrl-C, or SIGTERM during an embedded run."""


def exit_code_of(error: Error) -> ExitCode:
    """The exit code for an error that ended a command."""
    if isinstance(error, BrokerError):
        return ExitCode.BROKER_UNAVAILABLE
    if isinstance(error, QueueFull):
        return ExitCode.QUEUE_FULL
    if isinstance(error, WorkerFailed):
        return ExitCode.WORKER_FAILED
    return ExitCode.BAD_INPUT
