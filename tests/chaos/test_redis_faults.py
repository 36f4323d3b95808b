"""Promise 1: no accepted job is lost, whatever happens to Redis."""

from __future__ import annotations

import signal

import pytest

from jobs.errors import BrokerUnavailable
from jobs.schema import JobState
from tests.chaos.bench import LEASE_SECONDS, Bench
from tests.chaos.expected import Expected
from tests.chaos.faults import (
    connections_killed,
    message_lost,
    messages_doubled,
    redis_frozen,
    redis_full,
    redis_restarted,
)
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.integration.conftest import is_sampling
from tests.waiting import eventually, passing


def submit_several(bench: Bench, count: int, steps: int = 20) -> dict[str, Expected]:
    jobs: dict[str, Expected] = {}
    for number in range(count):
        jobs |= submit(bench, f"j{number}", seed=number, params={"num_inference_steps": steps})
    return jobs


def attempts(bench: Bench, jobs: dict[str, Expected]) -> set[int]:
    return {bench.ledger.get(job_id).attempts for job_id in jobs}


def test_a_redis_killed_for_longer_than_the_leases_costs_no_attempt(bench: Bench) -> None:
    bench.start_workers("w1", "w2")
    jobs = submit_several(bench, 4, steps=50)
    eventually(lambda: bench.ledger.queue_counts()["running"] == 2)

    with redis_restarted(bench):
        passing(LEASE_SECONDS + 1)
    wait_until_settled(bench)

    assert attempts(bench, jobs) == {1}
    assert broken_promises(bench, jobs) == []


def test_a_redis_frozen_for_ten_seconds_takes_no_job_from_workers_with_several_under_way(bench: Bench) -> None:
    bench.start_workers("w1", "w2", DG_WORKER_THREADS="6")
    bench.store.delay_seconds = 6  # many uploads at once, hence many leases to renew after the silence
    jobs: dict[str, Expected] = {}
    for number in range(10):
        uri = bench.bucket_uri(f"j{number}.png")
        jobs |= submit(bench, f"j{number}", seed=number, output=uri, params={"num_inference_steps": 1})
    eventually(lambda: bench.ledger.queue_counts()["running"] >= 6)

    with redis_frozen(bench):
        passing(10)
    bench.store.delay_seconds = 0
    wait_until_settled(bench)

    assert attempts(bench, jobs) == {1}
    assert broken_promises(bench, jobs) == []


def test_killed_connections_cost_no_attempt(bench: Bench) -> None:
    bench.start_workers("w1", "w2")
    jobs = submit_several(bench, 8, steps=5)

    for _ in range(5):
        with connections_killed(bench):
            passing(0.3)
    wait_until_settled(bench)

    assert attempts(bench, jobs) == {1}
    assert broken_promises(bench, jobs) == []


def test_a_full_redis_refuses_new_jobs_and_loses_none(bench: Bench) -> None:
    workers = bench.start_workers("w1", "w2")
    jobs = submit_several(bench, 4, steps=10)
    eventually(lambda: bench.ledger.queue_counts()["running"] == 2)

    with redis_full(bench):
        with pytest.raises(BrokerUnavailable, match="has no memory left"):
            submit(bench, "refused")
        passing(LEASE_SECONDS + 1)
    wait_until_settled(bench)

    assert [worker.process.poll() for worker in workers] == [None, None]
    assert attempts(bench, jobs) == {1}
    assert broken_promises(bench, jobs) == []
    submit(bench, "refused")
    assert bench.ended("refused").state is JobState.SUCCEEDED


def test_lost_and_doubled_messages_change_nothing(bench: Bench) -> None:
    jobs = submit_several(bench, 6, steps=2)
    with message_lost(bench), messages_doubled(bench):
        bench.start_workers("w1", "w2")

    wait_until_settled(bench)

    assert attempts(bench, jobs) == {1}
    assert broken_promises(bench, jobs) == []


def test_sigterm_while_redis_is_away_ends_the_worker_and_loses_no_job(bench: Bench) -> None:
    worker = bench.start_worker("w1", DG_DRAIN_SECONDS="1")
    jobs = submit_several(bench, 1, steps=50)
    eventually(lambda: is_sampling(bench, "j0"))

    with redis_restarted(bench):
        worker.signal(signal.SIGTERM)
        code = worker.exit_code()
    bench.start_worker("w2", STANDIN_STEP_SECONDS="0")
    wait_until_settled(bench)

    assert code == 0
    assert broken_promises(bench, jobs) == []
