"""Promise 2: leases and delays run by the clock of Redis, which all share; a worker's own may be wrong by hours."""

from __future__ import annotations

from tests.chaos.bench import AGAIN_SECONDS, Bench
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.integration.conftest import is_sampling
from tests.waiting import eventually, stretched

FIVE_HOURS_AHEAD = {"DG_FLUX_KONTEXT_ENGINE": "tests.chaos.engines:wrong_clock"}


def test_a_worker_five_hours_ahead_keeps_its_lease_and_signs_what_receivers_accept(bench: Bench) -> None:
    bench.start_workers("w1", **FIVE_HOURS_AHEAD)
    bench.start_worker("w2")
    jobs = submit(bench, "a", params={"num_inference_steps": 30}) | submit(
        bench, "b", params={"num_inference_steps": 30}
    )

    wait_until_settled(bench)

    assert {bench.ledger.get(job_id).worker for job_id in jobs} == {"w1", "w2"}
    assert {bench.ledger.get(job_id).attempts for job_id in jobs} == {1}
    assert broken_promises(bench, jobs) == []


def test_a_worker_five_hours_ahead_takes_over_when_a_lease_runs_out_and_not_before(bench: Bench) -> None:
    first = bench.start_worker("w1")
    jobs = submit(bench, "a", params={"num_inference_steps": 30})
    bench.start_worker("w2", **FIVE_HOURS_AHEAD)
    eventually(lambda: is_sampling(bench, "a"))
    first.kill()

    record = bench.ended("a", stretched(AGAIN_SECONDS))
    wait_until_settled(bench)

    assert [attempt.reason for attempt in record.history] == ["worker_lost", "succeeded"]
    assert broken_promises(bench, jobs) == []
