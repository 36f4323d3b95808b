"""The promises of a job's life, with real processes that are killed, stopped and frozen."""

from __future__ import annotations

import re
import signal
import time

import pytest
from celery import Celery
from PIL import Image

from jobs.errors import ErrorCode
from jobs.registry import WorkerRegistry, WorkerState
from jobs.schema import JobState
from tests.integration.conftest import LEASE_SECONDS, SECRET, Service, StartWorker, is_sampling
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer
from tests.waiting import eventually, stretched


def test_a_job_comes_back_as_a_picture_with_its_result(service: Service, start_worker: StartWorker) -> None:
    start_worker()
    service.submit("a", params={"num_inference_steps": 3, "seed": 77, "width": 80, "height": 64})

    record = service.ended("a")

    assert record.state is JobState.SUCCEEDED
    assert (record.result.seed, record.result.width, record.result.height) == (77, 80, 64)
    assert record.attempts == 1
    assert record.result.engine is not None
    assert record.result.engine.name == "stand-in"
    timings = record.result.timings.model_dump()
    assert [name for name, seconds in timings.items() if seconds is None] == []
    with Image.open(service.folder / "out" / "a.png") as picture:
        assert picture.size == (80, 64)
        assert picture.getpixel((0, 0)) == (77, 0, 0)


def test_a_killed_workers_job_is_finished_by_another_within_the_lease_and_five_seconds(
    service: Service, start_worker: StartWorker
) -> None:
    first = start_worker("w1", STANDIN_STEP_SECONDS="60")
    service.submit("a", params={"num_inference_steps": 2}, callback={"url": "http://127.0.0.1:9/none"})
    eventually(lambda: service.ledger.get("a").progress)
    start_worker("w2")

    first.kill()
    killed_at = time.monotonic()
    record = service.ended("a")

    assert record.state is JobState.SUCCEEDED
    assert record.attempts == 2
    assert [(attempt.worker, attempt.reason) for attempt in record.history] == [
        ("w1", "worker_lost"),
        ("w2", "succeeded"),
    ]
    assert service.outputs() == ["a.png"]
    assert time.monotonic() - killed_at < stretched(LEASE_SECONDS + 5)


def test_a_frozen_worker_that_comes_back_changes_nothing(service: Service, start_worker: StartWorker) -> None:
    zombie = start_worker("w1", STANDIN_STEP_SECONDS="0.5")
    service.submit("a", params={"num_inference_steps": 4, "seed": 5})
    eventually(lambda: is_sampling(service, "a"))
    zombie.signal(signal.SIGSTOP)
    start_worker("w2")
    finished = service.ended("a")

    zombie.signal(signal.SIGCONT)
    zombie.wait_until_logged("lease_lost job=a")

    assert finished.worker == "w2"
    assert service.ledger.get("a") == finished
    assert service.outputs() == ["a.png"]


def test_a_job_that_kills_workers_ends_as_failed_with_its_history_and_its_neighbour_finishes(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(204))
    service.submit("poison", prompt="die", callback={"url": hook}, params={"num_inference_steps": 1})
    service.submit("neighbour", params={"num_inference_steps": 1})
    for attempt in range(3):
        worker = start_worker(f"w{attempt}", ready=None)
        assert worker.exit_code() == -signal.SIGKILL
    start_worker("last")

    poison = service.ended("poison")

    assert poison.state is JobState.FAILED
    assert poison.result.error is not None
    assert poison.result.error.code is ErrorCode.WORKER_LOST
    assert [attempt.reason for attempt in poison.history] == ["worker_lost"] * 3
    assert service.ended("neighbour").state is JobState.SUCCEEDED
    eventually(lambda: http_server.requests("/hook"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_and_ctrl_c_finish_the_job_on_the_gpu_and_exit_with_zero(
    number: signal.Signals, service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker("w1")
    service.submit("a", params={"num_inference_steps": 20})
    eventually(lambda: is_sampling(service, "a"))

    worker.signal(number)

    assert worker.exit_code() == 0
    assert service.ledger.get("a").state is JobState.SUCCEEDED


def test_out_of_patience_the_job_goes_back_at_once_and_the_run_does_not_count(
    service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker("w1", DG_DRAIN_SECONDS="0.5")
    service.submit("a", params={"num_inference_steps": 1000})
    eventually(lambda: is_sampling(service, "a"))

    worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 0
    record = service.ledger.get("a")
    assert (record.state, record.attempts) == (JobState.QUEUED, 0)
    start_worker("w2")
    eventually(lambda: service.ledger.get("a").state is JobState.RUNNING)


def test_a_second_sigterm_hands_the_job_back_at_its_next_step(service: Service, start_worker: StartWorker) -> None:
    worker = start_worker("w1")
    service.submit("a", params={"num_inference_steps": 1000})
    eventually(lambda: is_sampling(service, "a"))

    worker.signal(signal.SIGTERM)
    registry = WorkerRegistry(service.ledger.redis, service.settings.key_prefix)
    eventually(lambda: [entry.state for entry in registry.workers()] == [WorkerState.DRAINING])
    worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 0
    assert service.ledger.get("a").state is JobState.QUEUED


def test_cancel_works_before_during_and_after_and_the_model_stays(service: Service, start_worker: StartWorker) -> None:
    service.submit("before")
    assert service.ledger.cancel("before") is JobState.QUEUED
    worker = start_worker()
    service.submit("during", params={"num_inference_steps": 1000})
    eventually(lambda: is_sampling(service, "during"))
    assert service.ledger.cancel("during") is JobState.RUNNING
    assert service.ended("during").state is JobState.CANCELLED
    service.submit("after", params={"num_inference_steps": 1})
    assert service.ended("after").state is JobState.SUCCEEDED
    assert service.ledger.cancel("after") is JobState.SUCCEEDED

    assert service.ledger.get("after").state is JobState.SUCCEEDED
    assert service.outputs() == ["after.png"]
    assert worker.log.count("model_ready") == 1


def test_a_plain_celery_client_gets_its_picture_and_its_callback(
    service: Service, start_worker: StartWorker, redis_server: RedisServer, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(200))
    start_worker()
    with Celery(broker=redis_server.url, set_as_current=False) as celery:
        job = {"image": service.picture(), "prompt": "make it snow", "callback": {"url": hook}}
        sent = celery.send_task("worker.tasks.edit", args=[job], queue="edits", ignore_result=True)
        as_keywords = celery.send_task("worker.tasks.edit", kwargs=job, queue="edits", ignore_result=True)
        odd = celery.send_task("worker.tasks.edit", args=[job, 1], queue="edits")
        broken = celery.send_task("worker.tasks.edit", args=[{"callback": {"url": hook}}], queue="edits")

    eventually(lambda: len(http_server.requests("/hook")) == 3)
    assert service.ended(odd.id).state is JobState.FAILED, "and the worker went on to the next message"

    events = {event["data"]["job_id"]: event for event in (r.verified(SECRET) for r in http_server.requests("/hook"))}
    assert events[sent.id]["type"] == events[as_keywords.id]["type"] == "edit.succeeded"
    assert service.outputs() == sorted([f"{sent.id}.png", f"{as_keywords.id}.png"])
    assert events[broken.id]["type"] == "edit.failed"
    assert events[broken.id]["data"]["error"]["code"] == "invalid_job"
    assert events[broken.id]["data"]["error"]["message"] == "image: missing; prompt: missing"


def test_a_receiver_that_is_down_gets_the_callback_later_under_the_same_id(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(500, headers={"Retry-After": "1"}), Answer(200))
    start_worker()
    service.submit("a", callback={"url": hook}, params={"num_inference_steps": 1})

    eventually(lambda: service.ledger.get("a").callback == "delivered")

    first, second = http_server.requests("/hook")
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "msg_a_succeeded"
    second.verified(SECRET)


def test_a_redis_that_restarts_during_a_job_costs_nothing(
    service: Service, start_worker: StartWorker, redis_server: RedisServer
) -> None:
    worker = start_worker()
    service.submit("a", params={"num_inference_steps": 30})
    eventually(lambda: is_sampling(service, "a"))
    time.sleep(1.1)  # the append-only file is written out every second

    redis_server.kill()
    worker.wait_until_logged("redis_away")
    redis_server.start()

    assert service.ended("a").attempts == 1
    service.submit("b", params={"num_inference_steps": 1})
    assert service.ended("b").state is JobState.SUCCEEDED
    assert worker.process.poll() is None
    assert not re.search("broker lost|CPendingDeprecation", worker.log), "Celery's words for what our own line says"


def test_a_broken_device_ends_the_process_and_the_job_goes_on_elsewhere(
    service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker("w1")
    service.submit("a", prompt="break the device", params={"num_inference_steps": 1})

    assert worker.exit_code() == 70

    record = service.ledger.get("a")
    assert record.state is JobState.QUEUED
    assert [attempt.reason for attempt in record.history] == ["worker_lost"]


def test_a_hung_step_ends_the_process_and_the_lease_runs_out(service: Service, start_worker: StartWorker) -> None:
    worker = start_worker("w1", DG_STALL_SECONDS="1")
    service.submit("a", prompt="hang", params={"num_inference_steps": 2})

    assert worker.exit_code() == 71

    assert "worker_stuck job=a" in worker.log


@pytest.mark.parametrize(
    ("prompt", "code", "attempts"),
    [("run out of memory", ErrorCode.OUT_OF_MEMORY, 1), ("raise", ErrorCode.ENGINE_FAILED, 2)],
)
def test_an_engine_error_fails_the_job_and_the_worker_lives(
    service: Service, start_worker: StartWorker, prompt: str, code: ErrorCode, attempts: int
) -> None:
    worker = start_worker("w1", DG_MAX_ATTEMPTS="2")
    service.submit("a", prompt=prompt, params={"num_inference_steps": 1})

    record = service.ended("a")

    assert record.result.error is not None
    assert record.result.error.code is code
    assert record.attempts == attempts
    service.submit("b", params={"num_inference_steps": 1})
    assert service.ended("b").state is JobState.SUCCEEDED
    assert worker.process.poll() is None


def test_a_job_that_needs_too_much_memory_runs_once_more_with_less(service: Service, start_worker: StartWorker) -> None:
    worker = start_worker()
    service.submit("a", prompt="need much memory", params={"num_inference_steps": 1})

    record = service.ended("a")

    assert (record.state, record.attempts) == (JobState.SUCCEEDED, 1)
    assert "out_of_memory job=a" in worker.log


def test_a_worker_whose_device_fails_every_job_tries_itself_and_ends_for_its_supervisor(
    service: Service, start_worker: StartWorker
) -> None:
    suspect = start_worker("suspect", DG_MAX_ATTEMPTS="1", STANDIN_FAULT="raise")
    for name in ("a", "b", "c"):
        service.submit(name, params={"num_inference_steps": 1})
        assert service.ended(name).state is JobState.FAILED

    assert suspect.exit_code() == 70

    assert "3 different jobs failed in a row, and so did the warm-up edit" in suspect.log
    start_worker("well")
    service.submit("d", params={"num_inference_steps": 1})
    assert service.ended("d").worker == "well"


def test_jobs_that_raise_on_an_idle_worker_do_not_take_it_out_of_service(
    service: Service, start_worker: StartWorker
) -> None:
    busy = start_worker("busy")
    service.submit("long", params={"num_inference_steps": 300})
    eventually(lambda: is_sampling(service, "long"))
    idle = start_worker("idle", DG_MAX_ATTEMPTS="2")
    for name in ("a", "b", "c"):
        service.submit(name, prompt="raise", params={"num_inference_steps": 1})
    assert {service.ended(name).state for name in ("a", "b", "c")} == {JobState.FAILED}

    service.submit("good", params={"num_inference_steps": 1})

    assert service.ended("good").worker == "idle"
    assert "device_tried_out jobs=3" in idle.log
    assert busy.process.poll() is None


def test_two_idle_workers_share_two_jobs_at_once(service: Service, start_worker: StartWorker) -> None:
    start_worker("w1")
    start_worker("w2")
    service.submit("a", params={"num_inference_steps": 20})
    service.submit("b", params={"num_inference_steps": 20})

    first, second = service.ended("a"), service.ended("b")

    assert {first.worker, second.worker} == {"w1", "w2"}
