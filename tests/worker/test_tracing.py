"""A worker's spans: one run of a job under the span of whoever asked for it."""

from __future__ import annotations

import json
import logging

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from jobs.schema import JobState
from worker.event_log import EventLog
from worker.events import (
    CallbackRetried,
    CallbackSettled,
    Event,
    JobEnded,
    JobRequeued,
    JobTaken,
    LeaseLost,
    Origin,
    RunFailed,
    StageEnded,
    TurnEnded,
    WorkerStopped,
)
from worker.listeners import listeners, traces_are_wanted
from worker.logs import JsonLines
from worker.tracing import MOST_OPEN_RUNS, Traces

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = Origin("spring", f"00-{TRACE_ID}-{PARENT_ID}-01")
MILLISECOND = 1_000_000


class Recorded:
    """A listener that makes spans, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._traces = Traces(provider)

    def hear(self, *events: Event) -> None:
        for event in events:
            self._traces.hear(event)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


def parent_of(span: ReadableSpan) -> SpanContext:
    assert span.parent is not None, f"{span.name} has no parent"
    return span.parent


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_run_and_its_stages_belong_to_the_trace_of_whoever_asked(recorded: Recorded) -> None:
    recorded.hear(
        JobTaken("a", 2, 3.0, ASKED),
        StageEnded("a", "fetch", 0.1),
        StageEnded("a", "waiting", 0.2),
        TurnEnded("a", 8.0, 30),
        StageEnded("a", "encode", 0.5),
        StageEnded("a", "sample", 7.0),
        StageEnded("a", "decode", 0.5),
        StageEnded("a", "upload", 0.3),
        JobEnded("a", 2, 8.6, "-", JobState.SUCCEEDED, 3.0),
    )

    spans = recorded.spans
    assert list(spans) == ["queued", "fetch", "waiting", "encode", "sample", "decode", "upload", "edit"]
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE_ID}
    edit = spans["edit"]
    assert edit.kind is SpanKind.CONSUMER
    assert edit.attributes == {
        "kontext.job": "a",
        "kontext.batch": "spring",
        "kontext.attempt": 2,
        "kontext.steps": 30,
        "kontext.outcome": "succeeded",
    }
    assert {f"{parent_of(spans[name]).span_id:016x}" for name in ("queued", "edit")} == {PARENT_ID}
    stages = ("fetch", "waiting", "encode", "sample", "decode", "upload")
    assert {parent_of(spans[name]).span_id for name in stages} == {edit.context.span_id}
    assert seconds(spans["queued"]) == pytest.approx(3.0)
    assert seconds(spans["sample"]) == pytest.approx(7.0)
    assert spans["encode"].end_time == spans["sample"].start_time
    assert spans["sample"].end_time == spans["decode"].start_time
    assert edit.status.status_code is StatusCode.UNSET


def test_without_a_traceparent_a_run_begins_a_trace_of_its_own(recorded: Recorded) -> None:
    recorded.hear(JobTaken("a", 1, 0.5), JobEnded("a", 1, 1.0, "-", JobState.SUCCEEDED, 0.5))

    spans = recorded.spans
    assert spans["edit"].parent is None
    assert parent_of(spans["queued"]).span_id == spans["edit"].context.span_id


@pytest.mark.parametrize(
    ("end", "outcome", "status"),
    [
        (JobEnded("a", 1, 1.0, "engine_failed", JobState.FAILED, 0.5), "failed", "engine_failed"),
        (JobEnded("a", 1, 1.0, "cancelled", JobState.CANCELLED, 0.5), "cancelled", None),
        (JobRequeued("a", 1, "input_unreachable", 2.0), "requeued", "input_unreachable"),
        (LeaseLost("a", 1), "lease_lost", "lease_lost"),
    ],
)
def test_a_runs_end_is_its_spans_end(recorded: Recorded, end: Event, outcome: str, status: str | None) -> None:
    recorded.hear(JobTaken("a", 1, 0.5), RunFailed("a", "engine_failed", ValueError("a prompt")), end)

    edit = recorded.spans["edit"]
    assert edit.attributes is not None
    assert (edit.attributes["kontext.outcome"], edit.attributes["error.type"]) == (outcome, "engine_failed")
    assert (edit.status.status_code, edit.status.description) == (
        (StatusCode.UNSET, None) if status is None else (StatusCode.ERROR, status)
    )
    assert [event.attributes for event in edit.events] == [{"exception.type": "ValueError"}], (
        "what it says may be secret"
    )


def test_a_callback_is_a_trace_of_its_own_with_a_link_to_the_jobs(recorded: Recorded) -> None:
    recorded.hear(CallbackRetried("a", 3, "HTTP 500", 5.0, "pending", 0.25, ASKED))

    callback = recorded.spans["callback"]
    assert callback.parent is None
    assert [f"{link.context.trace_id:032x}" for link in callback.links] == [TRACE_ID]
    assert f"{callback.context.trace_id:032x}" != TRACE_ID
    assert (callback.status.status_code, callback.status.description) == (StatusCode.ERROR, "HTTP 500")
    assert seconds(callback) == pytest.approx(0.25)


def test_events_of_runs_that_were_not_seen_to_begin_make_no_span(recorded: Recorded) -> None:
    recorded.hear(StageEnded("a", "fetch", 0.1), TurnEnded("a", 1.0, 1), LeaseLost("a", 1), WorkerStopped("w"))

    assert recorded.spans == {}


def test_runs_whose_end_is_never_heard_take_no_memory_for_ever(recorded: Recorded) -> None:
    recorded.hear(*(JobTaken(f"job-{number}", 1, 0.0) for number in range(MOST_OPEN_RUNS + 5)))

    assert len(recorded._traces._runs) == MOST_OPEN_RUNS


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_opentelemetrys_own_variables_turn_traces_on_and_off(
    variables: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert traces_are_wanted() is wanted


def test_a_collector_without_the_extra_costs_a_warning_and_no_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setitem(__import__("sys").modules, "worker.tracing", None)

    (only,) = listeners("kontext-worker", "w1")

    assert isinstance(getattr(only, "__self__", None), EventLog)
    assert "pip install 'kontext-edits[otel]'" in caplog.text


def test_json_lines_of_a_job_have_its_batch_and_trace(caplog: pytest.LogCaptureFixture) -> None:
    event_log = EventLog()
    with caplog.at_level(logging.INFO):
        event_log.hear(JobTaken("a", 1, 0.1, ASKED))
        event_log.hear(JobEnded("a", 1, 1.0, "-", JobState.SUCCEEDED, 0.1))
        event_log.hear(CallbackSettled("b", 1, "HTTP 204", 0, "delivered", 0.1, Origin("summer")))
        event_log.hear(JobEnded("stranger", 1, 1.0, "-", JobState.SUCCEEDED, 0.1))

    lines = [json.loads(JsonLines("w1").format(record)) for record in caplog.records]
    assert [(line["job"], line.get("batch"), line.get("trace")) for line in lines] == [
        ("a", "spring", TRACE_ID),
        ("b", "summer", None),
        ("stranger", None, None),
    ]
