"""Two versions on one Redis: what a newer one has written is read tolerantly, and its jobs wait for its workers."""

from __future__ import annotations

import json

import pytest
import redis

from jobs.errors import ErrorCode, Outage, RejectJob
from jobs.ledger import Ledger
from jobs.registry import WorkerRegistry, WorkerState
from jobs.schema import JobState
from tests.jobs.lives import LEASE_SECONDS, OUTPUT_ROOT, claimed, edit_job, submit


def rewrite(client: redis.Redis, job_id: str, field: str, **changes: object) -> None:
    """Change a JSON field of a record as a newer version might have written it."""
    key = f"dg:job:{job_id}"
    client.hset(key, field, json.dumps({**json.loads(client.hget(key, field) or "{}"), **changes}))


def test_a_record_with_unknown_fields_is_read(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a", params={"seed": 7}))
    rewrite(redis_client, "a", "job", later="x", params={"seed": 7, "sharpness": 3})
    redis_client.hset("dg:job:a", mapping={"mood": "fine", "progress": '{"stage": "dreaming", "depth": 3}'})

    record = ledger.get("a")

    assert (record.job.params.seed, record.job.prompt) == (7, "make it snow")
    assert record.progress is not None
    assert record.progress.stage == "dreaming"


def test_an_outcome_with_unknown_fields_and_codes_is_read(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a"))
    claim = claimed(ledger, "a")
    ledger.requeue("a", claim.token, "engine_failed")
    error = {"code": "too_beautiful", "message": "no words", "retryable": True, "hint": "sleep"}
    rewrite(redis_client, "a", "outcome", error=error, score=9)

    result = ledger.get("a").result

    assert result.error is not None
    assert (result.error.code, result.error.message) == (ErrorCode.INTERNAL, "too_beautiful: no words")


@pytest.mark.parametrize(("finished_at", "state"), [("", JobState.RUNNING), ("1790000000000000", JobState.FAILED)])
def test_an_unknown_state_is_open_or_failed(
    finished_at: str, state: JobState, ledger: Ledger, redis_client: redis.Redis
) -> None:
    submit(ledger, edit_job("a"))
    redis_client.hset("dg:job:a", mapping={"state": "dreaming", "finished_at": finished_at})

    assert ledger.get("a").state is state


def test_a_job_of_a_newer_version_waits_for_a_newer_worker(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a"))
    rewrite(redis_client, "a", "job", sharpness=3)

    with pytest.raises(Outage, match=r"sharpness.*it waits for a newer worker"):
        _ = claimed(ledger, "a").job


def test_what_was_never_a_job_fails_at_once(ledger: Ledger) -> None:
    ledger.adopt("a", {"id": "a", "image": "s3://in/a.png", "prompt": "snow", "sharpness": 3}, OUTPUT_ROOT)

    with pytest.raises(RejectJob, match="sharpness: unknown field"):
        _ = claimed(ledger, "a").job


def test_what_an_older_worker_took_for_no_job_has_no_output_and_fails_at_once(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    ledger.adopt("a", {"id": "a", "image": "s3://in/a.png", "prompt": "snow", "sharpness": 3}, OUTPUT_ROOT)
    known_by_now = {"id": "a", "image": "s3://in/a.png", "prompt": "snow"}
    redis_client.hset("dg:job:a", "job", json.dumps(known_by_now))

    with pytest.raises(RejectJob, match="send it again under a new id") as raised:
        _ = claimed(ledger, "a").job
    assert raised.value.code is ErrorCode.INVALID_JOB


def test_a_job_without_new_fields_can_be_read_by_an_older_worker(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a"))

    stored = json.loads(redis_client.hget("dg:job:a", "job") or "")

    assert not {"priority", "tenant", "callback"} & set(stored)


def test_a_worker_in_an_unknown_state_is_listed(redis_client: redis.Redis) -> None:
    redis_client.set("dg:worker:w1", json.dumps({"name": "w1", "state": "dreaming", "aura": "blue"}))
    redis_client.sadd("dg:workers", "w1")

    (info,) = WorkerRegistry(redis_client).workers()

    assert (info.name, info.state) == ("w1", WorkerState.BUSY)


def test_a_record_of_an_older_version_is_run(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a"))
    redis_client.hdel("dg:job:a", "priority", "tenant", "place", "invalid")
    redis_client.delete("dg:line:normal:", "dg:turns:normal")

    claim = ledger.claim_best("w1", LEASE_SECONDS)

    assert claim.job.prompt == "make it snow"  # type: ignore[union-attr]
