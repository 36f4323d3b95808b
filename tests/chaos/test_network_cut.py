"""Promises 1 to 3: a worker that cannot reach Redis loses its job to another, or nothing at all."""

from __future__ import annotations

from tests.chaos.bench import AGAIN_SECONDS, LEASE_SECONDS, Bench
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.integration.conftest import is_sampling
from tests.waiting import eventually, passing, stretched


def test_a_short_cut_costs_no_attempt(bench: Bench) -> None:
    bench.start_worker("w1")
    jobs = submit(bench, "a", params={"num_inference_steps": 30})
    eventually(lambda: is_sampling(bench, "a"))

    bench.lines["w1"].cut()
    passing(1)
    bench.lines["w1"].mend()
    wait_until_settled(bench)

    assert bench.ledger.get("a").attempts == 1
    assert broken_promises(bench, jobs) == []


def test_the_job_of_a_worker_cut_off_runs_elsewhere_and_ends_once(bench: Bench) -> None:
    bench.start_workers("w1", "w2")
    jobs = submit(bench, "a", params={"num_inference_steps": 40})
    eventually(lambda: is_sampling(bench, "a"))
    first = bench.ledger.get("a").worker or ""

    bench.lines[first].cut()
    record = bench.ended("a")
    bench.lines[first].mend()
    bench.workers[first].wait_until_logged("lease_lost job=a")
    jobs |= submit(bench, "b", seed=9)
    wait_until_settled(bench)

    assert record.worker != first
    assert broken_promises(bench, jobs) == []


def test_a_line_that_stalls_and_then_delivers_changes_nothing(bench: Bench) -> None:
    bench.start_workers("w1", "w2")
    jobs = submit(bench, "a", params={"num_inference_steps": 40})
    eventually(lambda: is_sampling(bench, "a"))
    first = bench.ledger.get("a").worker or ""

    bench.lines[first].freeze()
    passing(LEASE_SECONDS + 4)
    bench.lines[first].mend()
    wait_until_settled(bench)

    assert broken_promises(bench, jobs) == []


def test_a_slow_line_costs_time_only(bench: Bench) -> None:
    bench.start_worker("w1")
    bench.lines["w1"].delay_seconds = 0.15
    jobs = submit(bench, "a") | submit(bench, "b", seed=9)

    wait_until_settled(bench)

    assert {bench.ledger.get(job_id).attempts for job_id in jobs} == {1}
    assert broken_promises(bench, jobs) == []


def test_a_half_closed_line_is_left_for_a_new_one(bench: Bench) -> None:
    bench.start_worker("w1")
    for job_id in ("a", "b", "c"):
        bench.lines["w1"].half_close()
        jobs = submit(bench, job_id)
        assert bench.ended(job_id, stretched(AGAIN_SECONDS)).attempts == 1
    wait_until_settled(bench)
    assert broken_promises(bench, jobs | dict.fromkeys(("a", "b", "c"), jobs["c"])) == []


def test_a_connection_that_died_without_a_word_is_noticed_and_replaced(bench: Bench) -> None:
    bench.start_worker("w1")

    bench.lines["w1"].forget()
    jobs = submit(bench, "a")

    assert bench.ended("a").attempts == 1
    wait_until_settled(bench)
    assert broken_promises(bench, jobs) == []
