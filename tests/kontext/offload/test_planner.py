"""The plan for a budget: what stays, what is streamed, what it costs. Times are arithmetic, no device is needed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kontext import BudgetError
from kontext.offload.planner import Need, Part, least_budget, make_plan, seconds_per_step

GIB = 2**30
MB = 1_000_000

# The 12B model: 19 double and 38 single blocks without modulation, then what is needed once.
BLOCKS = [Part(f"double.{i}", 453 * MB, 4.3e-3) for i in range(19)]
BLOCKS += [Part(f"single.{i}", 227 * MB, 4.3e-3) for i in range(38)]
ONCE = [Part("clip", 246 * MB), *(Part(f"t5.{i}", 386 * MB) for i in range(24)), Part("decoder", 198 * MB)]
FLUX = Need(BLOCKS, ONCE, fixed_bytes=400 * MB, working_bytes=3_000 * MB)


def parts(names: str, sizes: st.SearchStrategy[int]) -> st.SearchStrategy[list[Part]]:
    seconds = st.floats(0.001, 1)
    return st.lists(st.tuples(sizes, seconds), min_size=1, max_size=9).map(
        lambda drawn: [Part(f"{names}.{i}", nbytes, time) for i, (nbytes, time) in enumerate(drawn)]
    )


needs = st.builds(
    Need,
    parts("loop", st.integers(1, 50)),
    parts("once", st.integers(1, 50)),
    st.integers(0, 99),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.03, 0.3]),
)


def test_with_room_for_all_nothing_is_streamed() -> None:
    plan = make_plan([FLUX], 40 * GIB, 53e9)

    assert plan.streamed == frozenset()
    assert (plan.slots, plan.slow_down()) == (0, pytest.approx(1))
    assert plan.peak_bytes == (8_607 + 8_626 + 246 + 24 * 386 + 198 + 400 + 3_000) * MB


@pytest.mark.parametrize(("budget_gib", "at_most"), [(24, 1.02), (16, 1.10), (12, 1.25), (8, 2.0)])
def test_copies_hide_behind_blocks_at_the_rate_of_pcie_5(budget_gib: int, at_most: float) -> None:
    plan = make_plan([FLUX], budget_gib * GIB, 53e9)

    assert plan.peak_bytes <= budget_gib * GIB
    assert plan.slow_down(30) <= at_most


def test_what_is_streamed_of_a_step_is_spread_over_it() -> None:
    # At half the rate a single block takes two blocks' time to copy. One in three hides; 13 in a row do not.
    rate, block = 26e9, 4.3e-3
    singles = [Part(f"single.{i}", 227 * MB, block) for i in range(38)]
    spread = frozenset(f"single.{i}" for i in range(1, 38, 3))
    in_a_row = frozenset(f"single.{i}" for i in range(len(spread)))

    assert seconds_per_step(singles, spread, 3, rate) == pytest.approx(38 * block)
    assert seconds_per_step(singles, in_a_row, 3, rate) > 1.1 * 38 * block


def test_a_step_that_streams_everything_takes_as_long_as_its_copies() -> None:
    loop = [Part(str(i), 100, seconds=1.0) for i in range(5)]
    everything = frozenset(part.name for part in loop)

    assert seconds_per_step(loop, everything, slots=3, rate=50) == pytest.approx(10.0)  # 500 bytes at 50 a second
    assert seconds_per_step(loop, everything, slots=3, rate=500) == pytest.approx(5.0)  # the blocks' own time
    assert seconds_per_step(loop, everything, slots=1, rate=500) == pytest.approx(6.0)  # nothing hides in one slot


def test_double_blocks_stay_before_single_ones_where_the_copies_hide() -> None:
    plan = make_plan([Need(BLOCKS, [], 0, 0)], 10 * GIB, 60e9)

    assert plan.step_seconds == pytest.approx(plan.resident_step_seconds)
    assert sum("double" in name for name in plan.streamed) < sum("single" in name for name in plan.streamed)


def test_a_budget_that_cannot_work_names_the_smallest_that_can() -> None:
    with pytest.raises(BudgetError, match=r"the VRAM budget is 2,048 MiB; .* needs 4,539 MiB: allow that much or more"):
        make_plan([FLUX], 2 * GIB, 53e9)

    make_plan([FLUX], 4_539 * 2**20, 53e9)


@settings(deadline=None)
@given(needs, st.floats(1, 1e4), st.integers(0, 300))
def test_every_plan_fits_its_budget_and_the_least_budget_is_the_least(need: Need, rate: float, spare: int) -> None:
    least = least_budget([need])

    plan = make_plan([need], least + spare, rate)

    staying = [part.nbytes for part in (*need.loop, *need.once) if part.name not in plan.streamed]
    tensors = need.fixed_bytes + need.working_bytes + sum(staying) + plan.slots * plan.slot_bytes
    assert plan.peak_bytes == need.context_bytes + math.ceil(tensors * (1 + need.fragments))
    assert plan.peak_bytes <= least + spare
    assert all(part.nbytes <= plan.slot_bytes for part in (*need.loop, *need.once) if part.name in plan.streamed)
    assert plan.step_seconds >= plan.resident_step_seconds * (1 - 1e-9)
    assert plan.step_seconds >= plan.step_bytes / rate * 0.999
    with pytest.raises(BudgetError):
        make_plan([need], least - 1, rate)


@settings(deadline=None)
@given(needs, st.floats(1, 1e4), st.integers(0, 200), st.integers(0, 200))
def test_more_memory_is_never_slower_in_the_loop(need: Need, rate: float, spare: int, more: int) -> None:
    less = make_plan([need], least_budget([need]) + spare, rate)
    roomier = make_plan([need], least_budget([need]) + spare + more, rate)

    assert roomier.slow_down() <= less.slow_down() + 0.01  # plans are compared in hundredths
