"""A job that ends each worker it runs on, between two good ones."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.chaos.bench import MAX_ATTEMPTS, SHORT_LEASE, Bench
from tests.chaos.expected import Expected
from tests.chaos.invariants import broken_promises, submit, wait_until_settled

FAILED = frozenset({JobState.FAILED})


def assert_poison_ends(bench: Bench, prompt: str, exit_code: int, environment: Mapping[str, str]) -> None:
    """Run a poisonous job between two good ones, on workers that it ends with that code."""
    jobs = submit(bench, "before") | {"poison": Expected(7, FAILED)}
    submit(bench, "poison", prompt=prompt, params={"num_inference_steps": 10})
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
    for name in ("before", "after"):
        reasons = [attempt.reason for attempt in bench.ledger.get(name).history]
        assert reasons.count("worker_lost") <= 1, f"{name} was put beside a suspect"
        assert bench.ledger.get(name).attempts <= 1 + reasons.count("worker_lost"), "it may have been at its upload"
    assert broken_promises(bench, jobs) == []
