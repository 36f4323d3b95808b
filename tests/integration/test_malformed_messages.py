"""Strange messages between good jobs: the worker goes on and no job pays.

The table of what must be put aside, and why, is in `tests/hostile/messages.py`.
"""

from __future__ import annotations

import json
import random
import re

import pytest
from celery import Celery

from jobs.queue import QUEUE, TASK
from jobs.schema import JobState
from tests.hostile.messages import changed, valid_message, whole_message, with_header
from tests.hostile.mutations import mutated
from tests.integration.conftest import Service, StartWorker
from tests.waiting import eventually
from worker.intake import NotOurs, check_message


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


@pytest.mark.slow
def test_ten_thousand_mutations_of_valid_messages_between_200_jobs_cost_none_of_them(
    service: Service, start_worker: StartWorker
) -> None:
    draw = random.Random(12)
    valid = valid_message(service.settings.broker_url)
    whole = whole_message(service.settings.broker_url)
    worker = start_worker(STANDIN_STEP_SECONDS="0", DG_LEASE_SECONDS="30")
    good = [f"good-{number}" for number in range(200)]

    for job_id in good:
        mutants = [mutated(draw.choice([valid, whole]), draw) for _ in range(50)]
        service.ledger.redis.lpush(QUEUE, *mutants)
        service.submit(job_id, params={"num_inference_steps": 1})

    eventually(lambda: all(record and record.state.is_terminal for record in service.ledger.get_many(good)))
    ended = [record for record in service.ledger.get_many(good) if record]
    assert {(record.state, record.attempts) for record in ended} == {(JobState.SUCCEEDED, 1)}
    assert worker.process.poll() is None
    assert worker.log.count("message_put_aside") > 1000


def test_reasons_are_of_one_short_printable_line(service: Service) -> None:
    valid = valid_message(service.settings.broker_url)
    with pytest.raises(NotOurs, match=re.escape(TASK)) as refused:
        check_message(changed(valid, with_header("task", "\x1b[31m\n" * 1000)))

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    check_message(json.dumps(valid))
