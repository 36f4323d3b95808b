"""What ends a job early and what opens it again: a batch's cancel, deadlines, a retry by hand."""

from __future__ import annotations

import pytest

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.waiting import eventually

MANY_STEPS = {"num_inference_steps": 1000}
FEW_STEPS = {"num_inference_steps": 2}


def stage_of(service: Service, job_id: str) -> str | None:
    progress = service.ledger.get(job_id).progress
    return progress.stage if progress else None


def test_a_batch_is_cancelled_whether_its_jobs_have_ended_sample_wait_for_the_gpu_or_are_queued(
    service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker()
    service.submit("ended", batch="b", params=FEW_STEPS)
    service.ended("ended")
    service.submit("sampling", batch="b", params=MANY_STEPS)
    eventually(lambda: stage_of(service, "sampling") == "sampling")
    service.submit("next", batch="b", params=MANY_STEPS)
    eventually(lambda: stage_of(service, "next") == "waiting")
    service.submit("queued", batch="b", params=MANY_STEPS)
    service.submit("neighbour", params=FEW_STEPS)

    before = service.client.cancel_batch("b")

    assert before == {"queued": 1, "running": 2, "succeeded": 1, "failed": 0, "cancelled": 0}
    for job_id in ("sampling", "next", "queued"):
        assert service.ended(job_id).state is JobState.CANCELLED
    assert service.ended("neighbour").state is JobState.SUCCEEDED
    assert service.client.status("b")[JobState.CANCELLED] == 3
    assert service.outputs() == ["ended.png", "neighbour.png"]
    assert worker.log.count("model_ready") == 1


@pytest.mark.parametrize(
    ("of_worker", "of_job", "limit"),
    [("4", None, "4 s"), ("900", 1, "1 s"), ("4", 600, "4 s")],
)
def test_a_job_that_runs_longer_than_it_may_fails_and_the_worker_goes_on(
    service: Service, start_worker: StartWorker, of_worker: str, of_job: float | None, limit: str
) -> None:
    worker = start_worker(DG_JOB_TIMEOUT_SECONDS=of_worker)

    service.submit("a", params=MANY_STEPS, timeout_seconds=of_job)
    service.submit("next", params=FEW_STEPS)

    record = service.ended("a")
    assert record.state is JobState.FAILED
    assert record.outcome.error is not None
    assert record.outcome.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert record.outcome.error.message == f"the job ran longer than its {limit}"
    assert record.attempts == 1, "it would run as long again"
    assert service.ended("next").state is JobState.SUCCEEDED
    assert worker.log.count("model_ready") == 1


def test_a_job_retried_by_hand_runs_again_and_tells_both_ends(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(200))
    picture = http_server.answer("/cat.png", Answer(404))
    start_worker()
    service.submit("a", image=picture, batch="b", callback={"url": hook}, params=FEW_STEPS)
    assert service.ended("a").state is JobState.FAILED
    eventually(lambda: service.ledger.get("a").callback == "delivered")

    service.picture()
    http_server.serve_file("/cat.png", (service.folder / "in" / "cat.png").read_bytes(), "image/png")
    assert service.client.retry_batch("b", [ErrorCode.INPUT_NOT_FOUND]) == 1

    record = service.ended("a")
    assert (record.state, record.attempts) == (JobState.SUCCEEDED, 1)
    assert [(run.reason, run.retries) for run in record.history] == [("input_not_found", 0), ("succeeded", 1)]
    eventually(lambda: service.ledger.get("a").callback == "delivered")
    told = [request.headers["webhook-id"] for request in http_server.requests("/hook")]
    assert told == ["msg_a_failed", "msg_a_succeeded_2"]
    assert service.client.status("b")[JobState.SUCCEEDED] == 1
