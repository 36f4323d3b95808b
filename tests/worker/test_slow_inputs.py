"""Slow inputs have half of the threads, by a clock that the tests move; tenants share the places."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from jobs.errors import ErrorCode, Outage
from worker.slow_inputs import SlowInputs

SLOW_SECONDS = 15.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def begin(inputs: SlowInputs, jobs: ExitStack, *tenants: str) -> list[Callable[[], None]]:
    """The checks of jobs of these tenants that begin to fetch now."""
    return [jobs.enter_context(inputs.fetch(tenant)) for tenant in tenants]


def verdicts(checks: list[Callable[[], None]]) -> str:
    """A letter for each job: `.` goes on, `x` goes back to the queue."""

    def verdict(check: Callable[[], None]) -> str:
        try:
            check()
        except Outage:
            return "x"
        return "."

    return "".join(map(verdict, checks))


@pytest.mark.parametrize(
    ("threads", "slow"),
    [(6, "...xxx"), (3, ".xx"), (2, ".x"), (1, ".")],
)
def test_half_of_the_threads_may_wait_for_slow_inputs(threads: int, slow: str, clock: Clock) -> None:
    inputs = SlowInputs(threads, SLOW_SECONDS, clock)
    with ExitStack() as jobs:
        checks = begin(inputs, jobs, *["a"] * threads)
        clock.now += SLOW_SECONDS
        assert verdicts(checks) == "." * threads
        clock.now += 0.25

        assert verdicts(checks) == slow
        clock.now += 1000
        assert verdicts(checks) == slow

    with ExitStack() as jobs:  # all places are free again
        checks = begin(inputs, jobs, *["b"] * threads)
        clock.now += 2 * SLOW_SECONDS
        assert verdicts(checks) == slow


def test_a_tenant_with_many_slow_inputs_makes_room_for_another(clock: Clock) -> None:
    inputs = SlowInputs(6, SLOW_SECONDS, clock)
    with ExitStack() as jobs:
        checks = begin(inputs, jobs, "many", "many", "many", "few", "few")
        clock.now += 2 * SLOW_SECONDS

        # The fourth takes the place of the third; then 2 against 1 is fair.
        assert verdicts(checks) == "....x"
        assert verdicts(checks) == "..x.x"


def test_a_job_that_goes_back_says_why(clock: Clock) -> None:
    inputs = SlowInputs(1, SLOW_SECONDS, clock)
    with ExitStack() as jobs:
        first, second = begin(inputs, jobs, "a", "b")
        clock.now += 2 * SLOW_SECONDS
        first()

        with pytest.raises(
            Outage, match=r"not here after 15 s \(DG_INPUT_STALL_SECONDS\), and as many .* may \(1\)"
        ) as why:
            second()
    assert why.value.code is ErrorCode.INPUT_UNREACHABLE
