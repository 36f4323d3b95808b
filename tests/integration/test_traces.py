"""Traces of a real worker, as a collector receives them."""

from __future__ import annotations

import gzip

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider

from jobs.schema import EditJob, JobState
from tests.integration.conftest import Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.waiting import eventually

COLLECTED = "/v1/traces"


def spans(collector: HttpServer) -> dict[str, Span]:
    found = {}
    for request in collector.requests(COLLECTED):
        body = gzip.decompress(request.body) if request.headers.get("content-encoding") == "gzip" else request.body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            found |= {span.name: span for scope in resource.scope_spans for span in scope.spans}
    return found


def test_a_collector_gets_the_spans_of_a_run_under_the_clients_span(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    collector = http_server.answer(COLLECTED, Answer(200)).removesuffix(COLLECTED)
    hook = http_server.answer("/hook", Answer(204))
    start_worker(OTEL_EXPORTER_OTLP_ENDPOINT=collector, OTEL_BSP_SCHEDULE_DELAY="100", STANDIN_STEP_SECONDS="0")
    job = EditJob.model_validate({"image": service.picture(), "prompt": "a secret", "callback": {"url": hook}})

    with TracerProvider().get_tracer("shop").start_as_current_span("order") as order:
        job_id = service.client.submit(job)
        again = service.client.submit_many([job.model_copy(update={"traceparent": f"00-{7:032x}-{7:016x}-01"})])
        assert [submission.verdict for submission in again] == ["exists"], "another trace asks for the same job"
    assert service.ended(job_id).state is JobState.SUCCEEDED
    eventually(lambda: spans(http_server).keys() >= {"queued", "edit", "fetch", "sample", "upload", "callback"})

    found, asked = spans(http_server), order.get_span_context()
    edit = found["edit"]
    assert int.from_bytes(edit.trace_id) == asked.trace_id
    assert int.from_bytes(edit.parent_span_id) == asked.span_id
    assert {found[name].parent_span_id for name in ("fetch", "sample", "upload")} == {edit.span_id}
    assert [link.trace_id for link in found["callback"].links] == [edit.trace_id]
    called = http_server.requests("/hook")[0]
    assert called.headers["traceparent"].startswith(f"00-{asked.trace_id:032x}-{asked.span_id:016x}-")
    assert not any(b"a secret" in request.body for request in http_server.requests(COLLECTED))


@pytest.mark.parametrize("value", ["x", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "00-" + "G" * 32])
def test_a_traceparent_of_another_form_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="traceparent"):
        EditJob.model_validate({"image": "https://example.org/a.png", "prompt": "snow", "traceparent": value})


def test_a_collector_that_is_away_costs_no_job_and_no_time_at_the_end(
    service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", STANDIN_STEP_SECONDS="0")
    service.submit("a")

    assert service.ended("a").state is JobState.SUCCEEDED
    worker.process.terminate()
    assert worker.exit_code() == 0
