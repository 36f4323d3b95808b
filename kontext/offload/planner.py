"""Offload plan: the choice of weights that stay on the device and weights that are streamed, made before loading.

Streamed weights pass through a ring of slots. In the loop over the steps, copies overlap with the blocks that compute
meanwhile. Weights needed once per edit (text encoders, autoencoder, modulation) have little computation to overlap
with. Memory therefore goes first to weights of the loop, until their copies cost no time, then to weights needed once.

Every candidate layout is simulated on a timeline, and the fastest that fits wins. Double blocks are the first to stay:
a double block takes as long as a single block and weighs twice as much. Streamed blocks of a kind are spread evenly
over the step, so that copies do not pile up beyond the slots of the ring.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontext.errors import BudgetError

RING_SLOTS = (4, 3)  # candidate numbers of slots; with fewer, copies cannot overlap with computation
SETTLED_AFTER = 3  # steps until the ring's timeline is periodic


@dataclass(frozen=True)
class Part:
    """Unit of planning: weights that are on the device together or not at all."""

    name: str
    nbytes: int
    seconds: float = 0.0  # computing time of one use


@dataclass(frozen=True)
class Need:
    """Memory requirements of a model."""

    loop: Sequence[Part]  # used at every step, in this order
    once: Sequence[Part]  # used once per edit, in order of priority to stay
    fixed_bytes: int  # weights that always stay
    working_bytes: int  # tensors that are no weights, at the widest moment of an edit
    context_bytes: int = 0  # memory that torch's allocator does not give out: the driver's context and libraries
    fragments: float = 0.0  # part that the allocator holds beyond what it gives out
    extra_seconds: float = 0.0  # per edit, for doing with that little memory


@dataclass(frozen=True)
class Plan:
    """Streamed parts, the ring of slots, and the predicted memory and time."""

    streamed: frozenset[str]  # names of parts
    slots: int
    slot_bytes: int
    peak_bytes: int
    step_bytes: int  # copied at every step
    step_seconds: float
    resident_step_seconds: float  # with all weights on the device
    once_seconds: float  # copies before and after the loop, per edit
    extra_seconds: float = 0.0  # for what is done with less memory
    working_bytes: int | None = None  # for tensors that are no weights; None for any number

    def slow_down(self, steps: int = 30) -> float:
        """Predicted slow-down against a resident model, counting copies, blocks and bands only."""
        spent = self.once_seconds + self.extra_seconds + steps * self.step_seconds
        return spent / (steps * self.resident_step_seconds)

    def __str__(self) -> str:
        return (
            f"streamed_parts={len(self.streamed)} ring={self.slots}x{self.slot_bytes / 2**20:.0f}MiB "
            f"peak={self.peak_bytes / 2**30:.2f}GiB step={1e3 * self.step_seconds:.1f}ms "
            f"resident_step={1e3 * self.resident_step_seconds:.1f}ms copies_outside={self.once_seconds:.2f}s "
            f"in_bands={bool(self.extra_seconds)} slow_down={self.slow_down():.2f}"
        )


def make_plan(needs: Sequence[Need], budget_bytes: int, copy_bytes_per_second: float, steps: int = 30) -> Plan:
    """Find the fastest plan that fits a budget.

    Args:
        needs: what the model needs, for each way in which it may be run.
        copy_bytes_per_second: copy rate from host memory to the device.
        steps: number of steps of the edit to plan for.
    Raises:
        BudgetError: the budget is too small even with everything streamed.
    """
    plans = [
        _describe(need, streamed, slots, copy_bytes_per_second)
        for need in needs
        for slots, needed in _layouts(need)
        if _peak(need, needed, slots) <= budget_bytes
        for streamed in [_keep_more(need, needed, slots, budget_bytes)]
    ]
    if not plans:
        raise BudgetError(
            f"the VRAM budget is {megabytes(budget_bytes)}; with its weights streamed this model needs "
            f"{megabytes(least_budget(needs))}: allow that much or more"
        )
    # Of plans with the same predicted time, the one with fewer bytes to copy is safer.
    return min(plans, key=lambda plan: (round(plan.slow_down(steps), 2), plan.step_bytes, plan.peak_bytes))


def least_budget(needs: Sequence[Need]) -> int:
    """Smallest budget in bytes for which `make_plan` finds a plan."""
    return min(_peak(need, streamed, slots) for need in needs for slots, streamed in _layouts(need))


def resident_bytes(needs: Sequence[Need]) -> int:
    """Smallest memory in bytes in which nothing has to be streamed."""
    return min(_peak(need, frozenset(), slots=0) for need in needs)


def _layouts(need: Need) -> Iterator[tuple[int, frozenset[str]]]:
    """Candidate layouts (slots, streamed parts): nothing streamed, or some of the loop and all parts used once."""
    yield 0, frozenset()
    once = {part.name for part in need.once}
    for slots in RING_SLOTS:
        for loop in _streamed_in_loop(need.loop):
            yield slots, loop | once


def _keep_more(need: Need, streamed: frozenset[str], slots: int, budget_bytes: int) -> frozenset[str]:
    """Streamed parts after as many of the parts used once as the budget allows are kept on the device."""
    room = int((budget_bytes - _peak(need, streamed, slots)) / (1 + need.fragments))
    staying = set()
    for part in need.once:
        if part.name in streamed and part.nbytes <= room:
            room -= part.nbytes
            staying.add(part.name)
    return streamed - staying


def _peak(need: Need, streamed: frozenset[str], slots: int) -> int:
    staying = sum(part.nbytes for part in (*need.loop, *need.once) if part.name not in streamed)
    tensors = need.fixed_bytes + need.working_bytes + staying + slots * _slot_bytes(need, streamed)
    return need.context_bytes + math.ceil(tensors * (1 + need.fragments))


def _slot_bytes(need: Need, streamed: frozenset[str]) -> int:
    return max((part.nbytes for part in (*need.loop, *need.once) if part.name in streamed), default=0)


def _describe(need: Need, streamed: frozenset[str], slots: int, rate: float) -> Plan:
    return Plan(
        streamed=streamed,
        slots=slots if streamed else 0,
        slot_bytes=_slot_bytes(need, streamed),
        peak_bytes=_peak(need, streamed, slots),
        step_bytes=sum(part.nbytes for part in need.loop if part.name in streamed),
        step_seconds=seconds_per_step(need.loop, streamed, slots, rate),
        resident_step_seconds=sum(part.seconds for part in need.loop),
        once_seconds=sum(part.nbytes for part in need.once if part.name in streamed) / rate,
        extra_seconds=need.extra_seconds,
        working_bytes=need.working_bytes,
    )


def _streamed_in_loop(loop: Sequence[Part]) -> Iterator[frozenset[str]]:
    """Candidate sets of streamed loop parts: 0, 1, 2, ... parts, the lightest kind first or spread over all kinds."""
    by_weight = sorted({part.nbytes for part in loop})
    kinds = [[part.name for part in loop if part.nbytes == nbytes] for nbytes in by_weight]
    names = [part.name for part in loop]
    for count in range(len(names) + 1):
        yield frozenset(_spread(names, count))
        chosen: list[str] = []
        for kind in kinds:
            chosen += _spread(kind, min(len(kind), count - len(chosen)))
        yield frozenset(chosen)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Pick `count` of the names at even distances."""
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def seconds_per_step(loop: Sequence[Part], streamed: frozenset[str], slots: int, rate: float) -> float:
    """Seconds of a step in the steady state of the ring.

    Copies run one after the other. A slot is free for the next copy once its part has been computed. A streamed part
    starts computing once its copy has arrived.
    """
    computed = copied = began = 0.0
    free_at = deque([0.0] * slots)
    for _ in range(SETTLED_AFTER):
        began = computed
        for part in loop:
            if part.name in streamed:
                copied = max(copied, free_at.popleft()) + part.nbytes / rate
                computed = max(computed, copied) + part.seconds
                free_at.append(computed)
            else:
                computed += part.seconds
    return computed - began


def megabytes(nbytes: int) -> str:
    """Size in whole MiB, rounded up, so that the reported size is enough."""
    return f"{-(-nbytes // 2**20):,} MiB"
