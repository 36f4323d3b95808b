"""What listens to the events of a process besides its metrics: the log, and traces where OpenTelemetry is set up."""

from __future__ import annotations

import logging
import os

from worker.event_log import EventLog
from worker.events import Listener

log = logging.getLogger(__name__)


def listeners(service: str, instance: str) -> tuple[Listener, ...]:
    """The log, and the traces if OpenTelemetry's variables name a collector.

    Args:
        service: name in the traces when `OTEL_SERVICE_NAME` gives none.
        instance: name of this process among those of the service.
    """
    log_line = EventLog().hear
    if not traces_are_wanted():
        return (log_line,)
    try:
        from worker.tracing import otlp_traces
    except ImportError as error:  # clusters set these variables for everybody
        log.warning(
            "traces_off reason=%s: pip install 'kontext-edits[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT", error
        )
        return (log_line,)
    return (log_line, otlp_traces(service, instance))


def traces_are_wanted() -> bool:
    """True when a collector is named and nothing turns the traces off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get("OTEL_TRACES_EXPORTER") not in (None, "", "otlp"):
        return False
    return any(os.environ.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_"))
