"""The states of a worker, in a module that loads nothing: probes read them many times a minute."""

from __future__ import annotations

from enum import StrEnum


class WorkerState(StrEnum):
    """State of a worker."""

    LOADING = "loading"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STUCK = "stuck"
    BROKEN = "broken"
