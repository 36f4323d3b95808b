"""The ledger's keys: no two names share one, and a key that somebody else has taken breaks nothing half way."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import BrokerRefused, ErrorCode, RejectJob
from jobs.ledger import Ledger, Outbox, redis_key
from jobs.ledger.scripts import SCRIPTS, source
from jobs.schema import JobState
from tests.clock import ManualClock
from tests.jobs.lives import DONE, LEASE_SECONDS, claimed, edit_job, submit

PARTS = st.lists(st.text("a:%3A5", min_size=1), min_size=1, max_size=3)
NAMES = ("a", "a:jobs", "a:jobs:jobs", "a.b_c-d", "jobs", "queued", "a:b", "a:b:jobs")


def test_batches_of_any_names_keep_apart(ledger: Ledger, redis_client: redis.Redis) -> None:
    for name in NAMES:
        assert submit(ledger, edit_job(f"{name}:1", batch=name), edit_job(f"{name}:2", batch=name)) == ["created"] * 2

    for name in NAMES:
        claim = claimed(ledger, f"{name}:1", "w1")
        assert ledger.finish(f"{name}:1", claim.token, JobState.SUCCEEDED, DONE) is JobState.SUCCEEDED
    for name in NAMES:
        counts = ledger.batch_counts(name)
        assert (counts[JobState.SUCCEEDED], counts[JobState.QUEUED]) == (1, 1)
        assert list(ledger.batch_job_ids(name)) == [f"{name}:1", f"{name}:2"]


def test_every_key_of_the_scripts_stands_in_their_header_and_on_the_page() -> None:
    written = "".join(source(name) for name in SCRIPTS)
    names = set(re.findall(r"key\('(\w+)'", written))
    header = source("claim").partition("local prefix")[0]
    page = (Path(__file__).parents[2] / "docs" / "redis.md").read_text().partition("## Keys")[2].partition("\n## ")[0]

    assert {"job", "missing", "line"} <= names
    assert [name for name in sorted(names) if not re.search(rf"^--.* {name}\b", header, re.MULTILINE)] == []
    assert [name for name in sorted(names) if not re.search(rf"`dg:{name}[`:]", page)] == []


def test_names_without_a_colon_have_plain_keys() -> None:
    assert redis_key("dg:", "batch", "spring-2026", "jobs") == "dg:batch:spring-2026:jobs"
    assert redis_key("dg:", "batch", "spring:jobs") == "dg:batch:spring%3Ajobs"


@given(PARTS, PARTS)
def test_a_key_stands_for_one_list_of_parts(parts: list[str], others: list[str]) -> None:
    assert (redis_key("dg:", *parts) == redis_key("dg:", *others)) == (parts == others)


def test_the_scripts_spell_keys_as_python_does(redis_client: redis.Redis) -> None:
    script = redis_client.register_script(source("claim").partition("-- Take a job")[0] + "return key(unpack(ARGV, 3))")
    for parts in [("queued",), *product(("job", "batch"), NAMES), ("batch", "x%y:z", "jobs"), ("worker", "50%:%3A")]:
        assert script(["dg:"], [0, 1, *parts]) == redis_key("dg:", *parts)


@pytest.mark.parametrize("key", ["batch:spring", "batch:spring:jobs", "job:a", "queued", "outbox"])
def test_a_job_is_accepted_whole_or_not_at_all_when_a_key_is_somebody_elses(
    key: str, ledger: Ledger, redis_client: redis.Redis
) -> None:
    redis_client.set(f"dg:{key}", "not ours")
    before = set(redis_client.keys())

    for _ in range(2):  # the second time must not find the half of a first
        with pytest.raises(BrokerRefused, match=rf"dg:{key} is a string"):
            submit(ledger, edit_job("a", batch="spring"))
    assert set(redis_client.keys()) == before

    redis_client.delete(f"dg:{key}")
    assert submit(ledger, edit_job("a", batch="spring")) == ["created"]


def test_a_job_ends_even_if_its_batchs_keys_are_somebody_elses(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a", batch="spring"), edit_job("b", batch="spring"))
    claim = claimed(ledger, "a", "w1")
    for key in ("dg:batch:spring", "dg:batch:spring:jobs"):
        redis_client.delete(key)
        redis_client.set(key, "not ours")

    assert ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE) is JobState.SUCCEEDED
    assert ledger.cancel("b") is JobState.QUEUED
    assert ledger.get("b").state is JobState.CANCELLED
    assert redis_client.get("dg:batch:spring") == "not ours"


def test_a_damaged_record_does_not_keep_its_neighbours_from_coming_back(
    ledger: Ledger, redis_client: redis.Redis, clock: ManualClock
) -> None:
    submit(ledger, *(edit_job(name) for name in "abcd"))
    for name in "abcd":
        claimed(ledger, name, "w1")
    redis_client.delete("dg:job:a", "dg:job:b")
    redis_client.set("dg:job:b", "not ours")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.expire(max_attempts=3) == (["c", "d"], [], [])
    assert ledger.queue_counts()["running"] == 0
    assert not redis_client.exists("dg:job:a"), "no half record comes about"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("job", value) for value in ("{", "", "not ours")),
        *((name, "{") for name in ("history", "progress", "outcome", "attempts", "created_at", "retries")),
        *((name, "[1]") for name in ("history", "progress", "outcome")),
        *(("created_at", value) for value in ("nan", "9" * 30)),
        ("attempts", None),
    ],
)
def test_a_damaged_record_says_so_and_keeps_nobody_from_reading_the_others(
    field: str, value: str | None, ledger: Ledger, redis_client: redis.Redis
) -> None:
    submit(ledger, edit_job("a"), edit_job("b"))
    if value is None:
        redis_client.hdel("dg:job:a", field)
    else:
        redis_client.hset("dg:job:a", field, value)

    damaged, whole = ledger.get_many(["a", "b"])

    assert damaged is not None
    assert whole is not None
    assert (damaged.job.id, damaged.state) == ("a", JobState.QUEUED)
    assert damaged.result.error is not None
    assert "its record in Redis is damaged" in damaged.result.error.message
    assert whole.outcome.error is None


def test_a_job_that_cannot_be_read_is_rejected_and_suspects_no_device(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    submit(ledger, edit_job("a"))
    redis_client.hset("dg:job:a", "job", "{")

    with pytest.raises(RejectJob, match="damaged"):
        _ = claimed(ledger, "a").job


def test_a_delayed_job_without_a_record_is_forgotten(
    ledger: Ledger, redis_client: redis.Redis, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a"), edit_job("b"))
    for name in "ab":
        claim = claimed(ledger, name, "w1")
        ledger.requeue(name, claim.token, ErrorCode.ENGINE_FAILED, delay_seconds=5)
    redis_client.delete("dg:job:a")
    clock.advance(6)

    assert ledger.promote() == ["b"]
    assert not redis_client.exists("dg:job:a")


def test_a_damaged_callback_does_not_hold_up_the_others(ledger: Ledger, redis_client: redis.Redis) -> None:
    outbox = Outbox(ledger)
    callback = {"url": "https://a.example/hook"}
    submit(ledger, *(edit_job(name, callback=callback) for name in "abc"))
    for name in "abc":
        ledger.cancel(name)
    redis_client.delete("dg:callback:msg_a_cancelled", "dg:callback:msg_b_cancelled")
    redis_client.set("dg:callback:msg_b_cancelled", "not ours")

    assert [due.job_id for due in outbox.take(10, 60)] == ["c"]
    assert outbox.take(10, 60) == []


def test_a_message_for_a_key_that_is_no_job_is_refused_and_not_an_outage(
    ledger: Ledger, redis_client: redis.Redis
) -> None:
    redis_client.set("dg:job:a", "not ours")
    with pytest.raises(BrokerRefused, match="WRONGTYPE"):
        ledger.claim("a", "w1", LEASE_SECONDS)
