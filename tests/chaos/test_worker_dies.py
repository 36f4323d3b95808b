"""Promises 1 to 3: whatever a worker does when it dies, stops or comes back, its job ends once, with one picture."""

from __future__ import annotations

import signal
import time

import pytest

from jobs.schema import JobState
from tests.chaos.bench import AGAIN_SECONDS, SHORT_LEASE, Bench
from tests.chaos.engines import PLACES
from tests.chaos.expected import Expected
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.integration.conftest import is_sampling
from tests.waiting import eventually, stretched

UNCOUNTED = ("after the pop, before the claim", "after the claim", "while fetching")
ENDED = ("between finish and callback", "between callback and its note")


@pytest.mark.parametrize("place", PLACES)
def test_a_job_whose_worker_dies_at_any_place_ends_once(bench: Bench, place: str) -> None:
    doomed = {"DG_FLUX_KONTEXT_ENGINE": "tests.chaos.engines:doomed", "CHAOS_DIES": place, **SHORT_LEASE}
    worker = bench.start_worker("w1", **doomed)
    jobs = submit(bench, "a")
    died = worker.exit_code()
    again = bench.begin_worker("w2")
    again.wait_until_logged("worker_takes_jobs")

    record = bench.ended("a", stretched(AGAIN_SECONDS))
    wait_until_settled(bench)

    assert died == -signal.SIGKILL
    assert record.attempts == (1 if place in (*UNCOUNTED, *ENDED) else 2)
    assert broken_promises(bench, jobs) == []


def test_a_worker_killed_while_it_uploads_to_a_bucket_leaves_no_part_of_it(bench: Bench) -> None:
    first = bench.start_worker("w1")
    bench.store.delay_seconds = 1
    # Over 8 MiB, above which S3 clients like to cut an object into parts.
    size = {"width": 2048, "height": 2048}
    jobs = submit(bench, "a", prompt="noise", output=bench.bucket_uri("a.png"), params=size)
    eventually(lambda: any(method == "PUT" and path.endswith("a.png") for method, path in bench.store.requests))
    first.kill()
    bench.store.delay_seconds = 0
    bench.start_worker("w2")

    record = bench.ended("a")
    wait_until_settled(bench)

    assert record.attempts == 2
    assert broken_promises(bench, jobs) == []


def test_a_zombie_that_comes_back_after_its_lease_changes_nothing(bench: Bench) -> None:
    zombie, _ = bench.start_workers("w1", "w2")
    jobs = submit(bench, "a", params={"num_inference_steps": 5})
    eventually(lambda: is_sampling(bench, "a"))
    name = bench.ledger.get("a").worker or ""
    zombie = bench.workers[name]
    zombie.signal(signal.SIGSTOP)

    record = bench.ended("a", stretched(AGAIN_SECONDS))
    zombie.signal(signal.SIGCONT)
    zombie.wait_until_logged("lease_lost job=a")
    wait_until_settled(bench)

    assert record.worker != name
    assert bench.ledger.get("a").history == record.history
    assert broken_promises(bench, jobs) == []


def test_a_worker_killed_in_its_turn_to_reconcile_delays_nobodys_job(bench: Bench) -> None:
    first = bench.start_worker("w1")
    jobs = submit(bench, "a", params={"num_inference_steps": 1000})
    eventually(lambda: is_sampling(bench, "a"))
    first.kill()
    bench.ledger.take_turn(0)  # the last thing that the dead process would have done, had it died a moment later
    killed_at = time.monotonic()
    bench.start_worker("w2", STANDIN_STEP_SECONDS="0")

    eventually(lambda: bench.ledger.get("a").worker == "w2")

    assert time.monotonic() - killed_at < stretched(AGAIN_SECONDS)
    wait_until_settled(bench)
    assert broken_promises(bench, jobs) == []


def test_sigterm_to_all_workers_at_once_loses_no_job(bench: Bench) -> None:
    workers = bench.start_workers("w1", "w2")
    jobs: dict[str, Expected] = {}
    for number in range(6):
        jobs |= submit(bench, f"j{number}", seed=number, params={"num_inference_steps": 10})
    eventually(lambda: bench.ledger.queue_counts()["running"] == 2)

    for worker in workers:
        worker.signal(signal.SIGTERM)

    assert [worker.exit_code() for worker in workers] == [0, 0]
    bench.start_worker("w3")
    wait_until_settled(bench)
    assert broken_promises(bench, jobs) == []
    assert {bench.ledger.get(job_id).attempts for job_id in jobs} == {1}


def test_two_idle_workers_begin_two_jobs_within_a_fifth_of_a_second(bench: Bench) -> None:
    bench.start_workers("w1", "w2")
    for attempt in range(5):
        pair = {f"a{attempt}": 1, f"b{attempt}": 2}
        for job_id, seed in pair.items():
            submit(bench, job_id, seed=seed, params={"num_inference_steps": 4})
        for job_id in pair:
            assert bench.ended(job_id).state is JobState.SUCCEEDED

        records = [bench.ledger.get(job_id) for job_id in pair]
        waits = [record.result.timings.queued for record in records]

        assert {record.worker for record in records} == {"w1", "w2"}
        assert [seconds for seconds in waits if seconds is None or seconds >= 0.2] == []
