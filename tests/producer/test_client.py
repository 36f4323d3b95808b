"""The client for services."""

from __future__ import annotations

import json
import threading
import time

import pytest
from celery import Celery
from redis import Redis

from jobs.celery_app import make_app
from jobs.queue import QUEUE, TASK, next_messages
from jobs.schema import JobState
from jobs.settings import BrokerSettings, load_settings
from producer import BrokerUnavailable, Client, EditJob, JobConflict, JobNotFound, QueueFull
from tests.producer.conftest import finish, make_job
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually, stretched


def test_a_submitted_job_is_in_the_ledger_and_its_message_in_the_queue(client: Client, redis_client: Redis) -> None:
    job_id = client.submit(EditJob(image="s3://bucket/cat.png", prompt="make it snow"))

    assert client.get(job_id).state is JobState.QUEUED
    assert next_messages(redis_client, 10) == [job_id]


def test_any_celery_worker_can_read_the_message(client: Client, redis_server: RedisServer) -> None:
    client.submit(make_job("one"))
    app: Celery = make_app(redis_server.url)

    with app.connection_for_read() as connection, connection.SimpleQueue(QUEUE) as queue:
        message = queue.get(timeout=PATIENCE_SECONDS)
        message.ack()

    assert (message.headers["task"], message.headers["id"]) == (TASK, "one")
    assert message.payload[:2] == [["one"], {}]


def test_the_same_job_again_is_one_job_and_one_message(client: Client, redis_client: Redis) -> None:
    client.submit(make_job("one"))
    client.submit(make_job("one"))

    assert next_messages(redis_client, 10) == ["one"]


def test_an_id_never_changes_its_meaning(client: Client) -> None:
    client.submit(make_job("one"))

    with pytest.raises(JobConflict, match="'one' exists and asks for something else"):
        client.submit(make_job("one", prompt="rain"))


def test_many_jobs_go_in_by_the_chunk_and_each_is_accounted_for(client: Client, redis_client: Redis) -> None:
    taken = 0

    def jobs() -> list[EditJob]:
        return [make_job(f"job-{number}", batch="many") for number in range(1200)]

    def counted() -> object:
        nonlocal taken
        for job in jobs():
            taken += 1
            yield job

    submissions = client.submit_many(counted())  # type: ignore[arg-type]
    first = next(submissions)

    assert (first.job_id, first.verdict) == ("job-0", "created")
    assert taken == 500, "only the first chunk has been read"
    assert redis_client.llen(QUEUE) == 500, "and its messages are sent"
    assert [submission.verdict for submission in submissions] == ["created"] * 1199
    assert redis_client.llen(QUEUE) == 1200


def test_an_interrupted_submit_goes_on_where_it_stopped(client: Client, redis_client: Redis) -> None:
    jobs = [make_job(f"job-{number}", batch="many") for number in range(700)]
    submissions = client.submit_many(iter(jobs))
    next(submissions)
    submissions.close()  # type: ignore[attr-defined]

    verdicts = [submission.verdict for submission in client.submit_many(jobs)]

    assert verdicts == ["exists"] * 500 + ["created"] * 200
    assert redis_client.llen(QUEUE) == 700


def test_a_full_queue_refuses_and_says_so(redis_server: RedisServer) -> None:
    client = Client(settings=load_settings(BrokerSettings, broker_url=redis_server.url, max_queued=1))
    client.submit(make_job("one"))

    with pytest.raises(QueueFull, match=r"queue full \(1 of 1\)"):
        client.submit(make_job("two"))


def test_a_submit_that_waits_for_room_goes_on_as_jobs_are_taken(redis_server: RedisServer) -> None:
    client = Client(settings=load_settings(BrokerSettings, broker_url=redis_server.url, max_queued=2))
    names = [f"job-{number}" for number in range(7)]
    client.submit(make_job("job-3"))
    submissions = client.submit_many((make_job(name) for name in names), wait_for_room=True)
    told = [next(submissions) for _ in range(2)]
    most_waiting = client.ledger.waiting()

    def work() -> None:
        for _ in names:
            eventually(client.ledger.waiting)
            finish(client, client.ledger.oldest_queued(1)[0])

    worker = threading.Thread(target=work)
    worker.start()
    told += submissions
    worker.join()

    assert most_waiting == 2
    assert {item.job_id: item.verdict for item in told} == dict.fromkeys(names, "created") | {"job-3": "exists"}
    assert len(told) == len(names)
    assert all(client.get(name).state is JobState.SUCCEEDED for name in names)


def test_waiting_returns_the_result_when_the_job_ends(client: Client) -> None:
    client.submit(make_job("one", params={"seed": 7}))
    worker = threading.Thread(target=finish, args=(client, "one"))
    worker.start()

    result = client.wait("one", PATIENCE_SECONDS)
    worker.join()

    assert (result.state, result.seed, result.attempts) == (JobState.SUCCEEDED, 7, 1)


def test_waiting_too_long_is_a_timeout(client: Client) -> None:
    client.submit(make_job("one"))

    with pytest.raises(TimeoutError, match="still queued after"):
        client.wait("one", timeout_seconds=0.01)


def test_cancelling_a_batch_ends_what_waits_and_leaves_what_has_ended(client: Client) -> None:
    list(client.submit_many(make_job(f"job-{number}", batch="some") for number in range(3)))
    finish(client, "job-0")

    before = client.cancel_batch("some")

    assert (before[JobState.QUEUED], before[JobState.SUCCEEDED]) == (2, 1)
    assert client.status("some")[JobState.CANCELLED] == 2
    assert client.cancel("job-1") is JobState.CANCELLED


def test_cancelling_a_batch_passes_over_jobs_that_are_forgotten(client: Client, redis_client: Redis) -> None:
    list(client.submit_many(make_job(f"job-{number}", batch="some") for number in range(3)))
    finish(client, "job-0")
    assert redis_client.delete("dg:job:job-0") == 1

    before = client.cancel_batch("some")

    assert (before[JobState.QUEUED], before[JobState.SUCCEEDED]) == (2, 0)
    assert client.get("job-2").state is JobState.CANCELLED


def test_unknown_names_are_told(client: Client) -> None:
    for ask in (client.get, client.wait, client.cancel, client.cancel_batch, client.status):
        with pytest.raises(JobNotFound, match="nowhere"):
            ask("nowhere")


def test_redis_down_is_told_within_three_seconds(redis_server: RedisServer) -> None:
    client = Client(redis_server.url)
    redis_server.kill()
    started = time.monotonic()

    with pytest.raises(BrokerUnavailable, match="does not answer") as caught:
        client.submit(make_job("one"))

    assert time.monotonic() - started < stretched(3)
    assert "\n" not in str(caught.value)


def test_a_result_is_plain_json(client: Client) -> None:
    client.submit(make_job("one", metadata={"campaign": "spring"}))
    finish(client, "one")

    result = json.loads(client.wait("one").model_dump_json())

    assert result["metadata"] == {"campaign": "spring"}
