"""Promises 1 to 3: the clock of Redis, by which all leases and delays run, jumps by hours and back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.bench import AGAIN_SECONDS, Bench, running_bench
from tests.chaos.faults import Fault, message_lost, receiver_down, redis_clock_ahead, redis_clock_behind, store_failing
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.integration.conftest import is_sampling
from tests.servers.fake_clock import FakeClock
from tests.servers.http import HttpServer
from tests.servers.redis import running_redis
from tests.servers.s3 import S3Server
from tests.waiting import eventually, stretched

WORKERS = ("w1", "w2")
either_way = pytest.mark.parametrize("jump", [redis_clock_ahead, redis_clock_behind], ids=["ahead", "behind"])


@pytest.fixture
def bench(s3_server: S3Server, http_server: HttpServer, tmp_path: Path) -> Iterator[Bench]:
    data = tmp_path / "redis"
    data.mkdir()
    with (
        running_redis(data, clock=FakeClock(tmp_path / "clock")) as redis,
        running_bench(tmp_path, redis, s3_server, http_server) as bench,
    ):
        yield bench


@either_way
def test_jobs_and_callbacks_under_way_go_on_when_the_clock_jumps_and_when_it_is_put_right(
    bench: Bench, jump: Fault
) -> None:
    bench.start_workers(*WORKERS)
    jobs = {}
    for number in range(4):
        told = {} if number == 0 else {"callback": None}  # several callbacks to one that is down wait for each other
        jobs |= submit(bench, f"j{number}", seed=number, params={"num_inference_steps": 40}, **told)
    eventually(lambda: bench.ledger.queue_counts()["running"] == 2)

    with receiver_down(bench), jump(bench):
        eventually(lambda: not bench.ledger.queue_counts()["running"] and not bench.ledger.queue_counts()["queued"])
    wait_until_settled(bench)

    assert {bench.ledger.get(job_id).attempts for job_id in jobs} == {1}
    assert broken_promises(bench, jobs) == []


@either_way
def test_the_job_of_a_worker_killed_at_the_jump_runs_again_in_time(bench: Bench, jump: Fault) -> None:
    bench.start_workers(*WORKERS)
    jobs = submit(bench, "a", params={"num_inference_steps": 30}, callback=None)
    eventually(lambda: is_sampling(bench, "a"))
    with bench.redis.client() as redis:
        eventually(lambda: redis.exists("dg:turn"))  # a service two seconds old
    first = bench.ledger.get("a").worker or ""
    bench.workers[first].kill()
    killed_at = time.monotonic()

    with jump(bench):
        eventually(lambda: bench.ledger.get("a").worker != first)
        seconds = time.monotonic() - killed_at
    wait_until_settled(bench)

    assert seconds < stretched(AGAIN_SECONDS)
    assert broken_promises(bench, jobs) == []


def test_no_lost_message_and_no_back_off_waits_for_the_hours_that_a_clock_was_set_back(bench: Bench) -> None:
    bench.start_worker("w1")
    with store_failing(bench):
        jobs = submit(bench, "later", output=bench.bucket_uri("later.png"), callback=None)
        eventually(lambda: bench.ledger.queue_counts()["delayed"])
    bench.stop_workers()
    jobs |= submit(bench, "lost", callback=None)
    with message_lost(bench), redis_clock_behind(bench):
        bench.start_worker("w2")
        wait_until_settled(bench, 20)

    assert {bench.ledger.get(job_id).attempts for job_id in jobs} == {1}
    assert broken_promises(bench, jobs) == []
