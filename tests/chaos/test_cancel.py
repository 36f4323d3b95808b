"""Promise 6: a cancel is obeyed wherever the job is, and a job that is cancelled ends once like any other."""

from __future__ import annotations

import pytest

from jobs.schema import JobState
from tests.chaos.bench import Bench
from tests.chaos.expected import Expected
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.waiting import eventually

CANCELLED = frozenset({JobState.CANCELLED})


@pytest.mark.parametrize("stage", ["fetching", "waiting", "sampling", "uploading"])
def test_a_job_cancelled_at_any_stage_ends_as_cancelled_and_the_next_one_runs(bench: Bench, stage: str) -> None:
    bench.start_worker("w1")
    bench.store.delay_seconds = 1 if stage in ("fetching", "uploading") else 0
    jobs = submit(bench, "before", params={"num_inference_steps": 30}) if stage == "waiting" else {}
    steps = 100 if stage == "sampling" else 2
    # A worker takes the next job a second before the GPU is free; its first look at a bucket would take as long.
    place = {} if stage == "waiting" else {"output": bench.bucket_uri("a.png")}
    submit(bench, "a", params={"num_inference_steps": steps}, **place)
    eventually(lambda: stage_of(bench, "a") == stage)

    assert bench.ledger.cancel("a") is JobState.RUNNING
    jobs |= {"a": Expected(7, CANCELLED)} | submit(bench, "after", seed=9)
    wait_until_settled(bench)

    assert bench.ledger.get("a").history[-1].reason == "cancelled"
    assert broken_promises(bench, jobs) == []


def stage_of(bench: Bench, job_id: str) -> str | None:
    progress = bench.ledger.get(job_id).progress
    return progress.stage if progress else None
