"""Spans of OpenTelemetry: a listener of events.

    a span of whoever asked (the job's `traceparent`; without one `edit` begins a trace)
      +-- queued          from submit, or the last run's end, to this run
      +-- edit            one run of the job
            +-- fetch, waiting, encode, sample, decode, upload
    callback              one call of the receiver: a trace of its own, with a link to the job's

Spans go where the variables of OpenTelemetry say (`OTEL_EXPORTER_OTLP_ENDPOINT`), from a thread of the exporter's own.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import singledispatchmethod

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jobs.schema import JobState
from jobs.version import program_version
from worker.events import (
    CallbackSettled,
    Event,
    JobEnded,
    JobRequeued,
    JobTaken,
    LeaseLost,
    Listener,
    MemorySpared,
    Origin,
    RunFailed,
    StageEnded,
    TurnEnded,
    WorkerStopped,
)

MOST_OPEN_RUNS = 1000
FLUSH_MILLISECONDS = 2000
"""What a worker that leaves waits for a collector that does not answer."""

ON_THE_GPU = ("encode", "sample", "decode")
NANOSECONDS = 1_000_000_000


def otlp_traces(service: str, instance: str) -> Listener:
    """Make a listener that sends spans to the collector of `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    names = {SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", service), SERVICE_INSTANCE_ID: instance}
    # Not at the interpreter's exit, where a silent collector would hold up the process: `WorkerStopped` flushes.
    provider = TracerProvider(resource=Resource.create(names), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(provider).hear


@dataclass
class RunSpan:
    """The span of a run, and where on the clock its next stage on the GPU begins."""

    span: Span
    cursor_ns: int = 0


class Traces:
    """Makes spans of what a process does with jobs and callbacks; `hear` is the listener."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer: Tracer = provider.get_tracer("kontext-edits", program_version())
        self._runs: OrderedDict[str, RunSpan] = OrderedDict()

    @singledispatchmethod
    def hear(self, event: Event) -> None:
        """Begin, extend or end a span; an event that concerns none is passed over."""

    @hear.register
    def _(self, event: JobTaken) -> None:
        now, parent = time.time_ns(), _context_of(event.origin)
        names = _names(event.job_id, event.origin)
        span = self._tracer.start_span(
            "edit",
            parent,
            kind=SpanKind.CONSUMER,
            attributes={**names, "kontext.attempt": event.attempt},
            start_time=now,
        )
        beside = parent if event.origin.traceparent else set_span_in_context(span)
        queued_since = now - _ns(event.queued_seconds)
        self._tracer.start_span("queued", beside, attributes=names, start_time=queued_since).end(now)
        self._runs[event.job_id] = RunSpan(span)
        if len(self._runs) > MOST_OPEN_RUNS:  # ends that could not be written have no event
            self._runs.popitem(last=False)[1].span.end()

    @hear.register
    def _(self, event: TurnEnded) -> None:
        if run := self._runs.get(event.job_id):
            run.cursor_ns = time.time_ns() - _ns(event.seconds)
            run.span.set_attribute("kontext.steps", event.steps)

    @hear.register
    def _(self, event: StageEnded) -> None:
        if run := self._runs.get(event.job_id):
            now, length = time.time_ns(), _ns(event.seconds)
            # The engine tells its stages all at once, after the last.
            start = run.cursor_ns if event.stage in ON_THE_GPU and run.cursor_ns else now - length
            stage = self._tracer.start_span(event.stage, set_span_in_context(run.span), start_time=start)
            stage.end(start + length)
            run.cursor_ns = start + length

    @hear.register
    def _(self, event: MemorySpared) -> None:
        if run := self._runs.get(event.job_id):
            run.span.add_event(event.name)

    @hear.register
    def _(self, event: RunFailed) -> None:
        if run := self._runs.get(event.job_id):
            run.span.set_attribute("error.type", event.code)
            if event.cause is not None:
                run.span.add_event("exception", {"exception.type": type(event.cause).__name__})

    @hear.register
    def _(self, event: JobEnded) -> None:
        self._end(event.job_id, event.state, event.code if event.state is JobState.FAILED else None)

    @hear.register
    def _(self, event: JobRequeued) -> None:
        self._end(event.job_id, "requeued", event.code)

    @hear.register
    def _(self, event: LeaseLost) -> None:
        self._end(event.job_id, "lease_lost", "lease_lost")

    @hear.register
    def _(self, event: CallbackSettled) -> None:
        now = time.time_ns()
        job = get_current_span(_context_of(event.origin)).get_span_context()
        span = self._tracer.start_span(
            "callback",
            Context(),
            kind=SpanKind.CLIENT,
            attributes={**_names(event.job_id, event.origin), "kontext.attempt": event.attempt},
            links=[Link(job)] if job.is_valid else [],
            start_time=now - _ns(event.seconds),
        )
        if event.verdict != "delivered":
            span.set_status(Status(StatusCode.ERROR, event.answer))
        span.end(now)

    @hear.register
    def _(self, event: WorkerStopped) -> None:
        self._provider.force_flush(FLUSH_MILLISECONDS)

    def _end(self, job_id: str, outcome: str, failure: str | None) -> None:
        run = self._runs.pop(job_id, None)
        if run is None:
            return
        run.span.set_attribute("kontext.outcome", outcome)
        if failure is not None:
            run.span.set_status(Status(StatusCode.ERROR, failure))
        run.span.end()


def _names(job_id: str, origin: Origin) -> dict[str, str]:
    return {"kontext.job": job_id, **({"kontext.batch": origin.batch} if origin.batch else {})}


def _context_of(origin: Origin) -> Context:
    """The context of the job's `traceparent`; an empty one begins a trace."""
    carrier = {"traceparent": origin.traceparent} if origin.traceparent else {}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _ns(seconds: float) -> int:
    return int(seconds * NANOSECONDS)
