"""Promise 4: a job that kills its workers stops after `DG_MAX_ATTEMPTS`, with its reason, and takes nobody along."""

from __future__ import annotations

import signal
from collections.abc import Mapping

import pytest

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.chaos.bench import MAX_ATTEMPTS, SHORT_LEASE, Bench
from tests.chaos.invariants import Expected, broken_promises, submit, wait_until_settled

FAILED = frozenset({JobState.FAILED})


@pytest.mark.parametrize(("prompt", "exit_code"), [("leave", 1), ("crash", -signal.SIGSEGV)])
def test_a_job_that_ends_its_workers_fails_with_its_history_and_its_neighbours_finish(
    bench: Bench, prompt: str, exit_code: int
) -> None:
    assert_poison_ends(bench, prompt, exit_code, {})


def assert_poison_ends(bench: Bench, prompt: str, exit_code: int, environment: Mapping[str, str]) -> None:
    """Run a poisonous job between two good ones, on workers that it ends with that code."""
    jobs = submit(bench, "before") | {"poison": Expected(7, FAILED)}
    submit(bench, "poison", prompt=prompt)
    jobs |= submit(bench, "after", seed=9)
    names = [f"w{number}" for number in range(MAX_ATTEMPTS)]
    codes = [bench.begin_worker(name, **SHORT_LEASE, **environment).exit_code() for name in names]
    bench.start_worker("last", **environment)

    wait_until_settled(bench)

    record = bench.ledger.get("poison")
    assert codes == [exit_code] * MAX_ATTEMPTS
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.WORKER_LOST
    assert [(attempt.worker, attempt.reason) for attempt in record.history] == [(name, "worker_lost") for name in names]
    assert broken_promises(bench, jobs) == []
