"""Messages that are none of ours, given to a live worker: it puts each aside, says why, and takes the next good job."""

from __future__ import annotations

import json
import random
import re

import pytest
from celery import Celery

from jobs.dead_letters import DeadLetters
from jobs.queue import QUEUE, TASK
from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker
from tests.integration.hostile_messages import CHANGES, RAW, changed, envelope, mutated, with_header
from tests.waiting import eventually
from worker.intake import NotOurs, check_message


def test_a_worker_survives_every_malformed_message_and_keeps_each_with_its_reason(
    service: Service, start_worker: StartWorker
) -> None:
    valid, redis = envelope(service.settings.broker_url), service.ledger.redis
    hostile = [*RAW, *(changed(valid, change) for change in CHANGES.values())]
    worker = start_worker(STANDIN_STEP_SECONDS="0")

    for message in hostile:
        redis.lpush(QUEUE, message)
    service.submit("good", params={"num_inference_steps": 1})
    record = service.ended("good")

    assert record.state is JobState.SUCCEEDED
    assert record.attempts == 1
    letters = list(DeadLetters(redis, service.ledger.key("dead-letters")))
    assert len(letters) == len(hostile)
    assert all(letter.reason and letter.reason.isprintable() for letter in letters)
    assert worker.process.poll() is None
    assert worker.log.count("message_put_aside") == len(hostile)
    assert "\x1b" not in worker.log


def test_a_request_that_ends_without_its_task_leaves_the_gate_open(service: Service, start_worker: StartWorker) -> None:
    start_worker(STANDIN_STEP_SECONDS="0")
    with Celery(broker=service.settings.broker_url) as celery:
        for _ in range(5):
            celery.send_task("worker.tasks.edit", queue=QUEUE, args=["nobody"], expires=-60.0)
            celery.send_task("worker.tasks.edit", queue=QUEUE, args=["nobody", "too", "many"])

    service.submit("good", params={"num_inference_steps": 1})

    assert service.ended("good").state is JobState.SUCCEEDED


def test_a_compressed_message_of_a_plain_client_is_taken(service: Service, start_worker: StartWorker) -> None:
    start_worker(STANDIN_STEP_SECONDS="0")
    job = {"image": service.picture(), "prompt": "make it snow", "params": {"num_inference_steps": 1}}
    with Celery(broker=service.settings.broker_url) as celery:
        celery.send_task("worker.tasks.edit", queue=QUEUE, args=[job], task_id="packed", compression="gzip")

    eventually(lambda: service.ledger.get_many(["packed"])[0])
    assert service.ended("packed").state is JobState.SUCCEEDED


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_a_valid_message_between_good_jobs_cost_none_of_them(
    service: Service, start_worker: StartWorker, seed: int
) -> None:
    draw = random.Random(seed)
    valid = envelope(service.settings.broker_url)
    worker = start_worker(STANDIN_STEP_SECONDS="0")
    good = [f"good-{number}" for number in range(10)]

    for job_id in good:
        for _ in range(50):
            service.ledger.redis.lpush(QUEUE, mutated(valid, draw))
        service.submit(job_id, params={"num_inference_steps": 1})

    assert {service.ended(job_id).state for job_id in good} == {JobState.SUCCEEDED}
    assert worker.process.poll() is None


def test_reasons_are_of_one_short_printable_line(service: Service) -> None:
    valid = envelope(service.settings.broker_url)
    with pytest.raises(NotOurs, match=re.escape(TASK)) as refused:
        check_message(changed(valid, with_header("task", "\x1b[31m\n" * 1000)))

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    check_message(json.dumps(valid))
