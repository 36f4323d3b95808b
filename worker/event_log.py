"""The log as a listener of events: one line per event, `event key=value ...`."""

from __future__ import annotations

import logging

from worker.events import Event

log = logging.getLogger("worker")


def log_event(event: Event) -> None:
    """Write the event's line, and the trace of its exception where there is one."""
    if log.isEnabledFor(event.level):
        line = " ".join([event.name, *(f"{key}={text}" for key, text in event.items())])
        log.log(event.level, "%s", line, exc_info=event.error, extra={"event": event})
