"""The log as a listener of events: one line per event, `event key=value ...`."""

from __future__ import annotations

import logging
from collections import OrderedDict

from jobs.trace_context import trace_id_of
from worker.events import NOWHERE, CallbackSettled, Event, JobTaken, Origin

log = logging.getLogger("worker")

MOST_ORIGINS = 1000


class EventLog:
    """Writes the lines; `hear` is the listener. Remembers where the latest jobs come from, for their later events."""

    def __init__(self) -> None:
        self._origins: OrderedDict[str, Origin] = OrderedDict()

    def hear(self, event: Event) -> None:
        """Write the event's line, and the trace of its exception where there is one."""
        if isinstance(event, JobTaken | CallbackSettled):
            self._remember(event.job_id, event.origin)
        if log.isEnabledFor(event.level):
            line = " ".join([event.name, *(f"{key}={text}" for key, text in event.items())])
            extra = {"event": event, "origin": self._facts(event)}
            log.log(event.level, "%s", line, exc_info=event.error, extra=extra)

    def _remember(self, job_id: str, origin: Origin) -> None:
        self._origins[job_id] = origin
        self._origins.move_to_end(job_id)
        if len(self._origins) > MOST_ORIGINS:
            self._origins.popitem(last=False)

    def _facts(self, event: Event) -> dict[str, str]:
        """`batch` and `trace` of the event's job, as far as it has them."""
        origin = self._origins.get(getattr(event, "job_id", ""), NOWHERE)
        facts = {"batch": origin.batch, "trace": trace_id_of(origin.traceparent)}
        return {key: value for key, value in facts.items() if value}
