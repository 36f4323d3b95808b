"""The log as a listener of events: one line per event, `event key=value ...`."""

from __future__ import annotations

import logging
from collections import OrderedDict

from jobs.trace_context import trace_id_of
from worker.events import NOWHERE, CallbackSettled, Event, JobTaken, Origin

log = logging.getLogger("worker")

MOST_ORIGINS = 1000


class Origins:
    """Remembers where the latest jobs come from, for the lines of their later events."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Origin] = OrderedDict()

    def hear(self, event: Event) -> None:
        if isinstance(event, JobTaken | CallbackSettled):
            self._known[event.job_id] = event.origin
            self._known.move_to_end(event.job_id)
            if len(self._known) > MOST_ORIGINS:
                self._known.popitem(last=False)

    def facts(self, event: Event) -> dict[str, str]:
        """`batch` and `trace` of the event's job, as far as it has them."""
        origin = self._known.get(getattr(event, "job_id", ""), NOWHERE)
        facts = {"batch": origin.batch, "trace": trace_id_of(origin.traceparent)}
        return {key: value for key, value in facts.items() if value}


origins = Origins()


def log_event(event: Event) -> None:
    """Write the event's line, and the trace of its exception where there is one."""
    origins.hear(event)
    if log.isEnabledFor(event.level):
        line = " ".join([event.name, *(f"{key}={text}" for key, text in event.items())])
        extra = {"event": event, "origin": origins.facts(event)}
        log.log(event.level, "%s", line, exc_info=event.error, extra=extra)
