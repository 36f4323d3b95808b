"""Promise 6: a cancel is obeyed wherever the job is, and a job that is cancelled ends once like any other."""

from __future__ import annotations

import pytest

from jobs.schema import JobState
from tests.chaos.bench import Bench
from tests.chaos.invariants import Expected, broken_promises, submit, wait_until_settled
from tests.waiting import eventually

CANCELLED = frozenset({JobState.CANCELLED})
TOO_LATE = frozenset({JobState.CANCELLED, JobState.SUCCEEDED})
"""While the picture is on its way out, either is right."""


@pytest.mark.parametrize(
    ("stage", "states"),
    [("fetching", CANCELLED), ("waiting", CANCELLED), ("sampling", CANCELLED), ("uploading", TOO_LATE)],
)
def test_a_job_cancelled_at_any_stage_ends_once_and_the_next_one_runs(
    bench: Bench, stage: str, states: frozenset[JobState]
) -> None:
    bench.start_worker("w1")
    bench.store.delay_seconds = 1 if stage in ("fetching", "uploading") else 0
    jobs = submit(bench, "before", params={"num_inference_steps": 30}) if stage == "waiting" else {}
    steps = 100 if stage == "sampling" else 2
    submit(bench, "a", output=bench.bucket_uri("a.png"), params={"num_inference_steps": steps})
    eventually(lambda: stage_of(bench, "a") == stage)

    assert bench.ledger.cancel("a") is JobState.RUNNING
    jobs |= {"a": Expected(7, states)} | submit(bench, "after", seed=9)
    wait_until_settled(bench)

    assert bench.ledger.get("a").state in states
    assert broken_promises(bench, jobs) == []


def stage_of(bench: Bench, job_id: str) -> str | None:
    progress = bench.ledger.get(job_id).progress
    return progress.stage if progress else None
