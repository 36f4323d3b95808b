"""W3C Trace Context: the `traceparent` that a job carries from whoever sent it to whoever runs it."""

from __future__ import annotations

import sys

TRACEPARENT_PATTERN = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
"""Version, trace id, id of the parent span, flags (https://www.w3.org/TR/trace-context/#traceparent-header)."""


def current_traceparent() -> str | None:
    """The current OpenTelemetry span as a `traceparent`; None without one, or without OpenTelemetry."""
    trace = sys.modules.get("opentelemetry.trace")  # who has a current span has imported it
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace id, 32 hexadecimal digits."""
    return traceparent.split("-")[1] if traceparent else None
