"""Which weights stay on the device and which are streamed, decided before anything is loaded there.

Weights that are streamed pass through a ring of slots. In the loop over the steps their copies hide behind the blocks
that compute meanwhile; what is needed once per edit (text encoders, autoencoder, modulation) has little to hide behind.
So a byte of the loop is kept first, until its copies cost no time, then what is needed once.

Every layout in question is played on a timeline, and the fastest that fits wins. Double blocks come first among those
that stay: a double block takes as long as a single one and weighs twice as much. Which of a kind are streamed is spread
evenly over the step, so that no more copies meet in one place than the ring can take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kontext.errors import BudgetError

RING_SLOTS = (4, 3)  # numbers of slots in question; with fewer a copy has no block to hide behind
SETTLED_AFTER = 3  # steps until the ring's timeline repeats


@dataclass(frozen=True)
class Part:
    """Weights that are on the device together or not at all."""

    name: str
    nbytes: int
    seconds: float = 0.0  # of computing with them once


@dataclass(frozen=True)
class Need:
    """What a model asks of a device's memory."""

    loop: Sequence[Part]  # at every step, in this order
    once: Sequence[Part]  # once per edit, what should stay first ahead
    fixed_bytes: int  # weights that always stay
    working_bytes: int  # activations, the library's own, whatever else is not weights


@dataclass(frozen=True)
class Plan:
    """What stays, what is streamed, and what is expected of it."""

    streamed: frozenset[str]  # names of parts
    slots: int
    slot_bytes: int
    peak_bytes: int
    step_bytes: int  # copied at every step
    step_seconds: float
    resident_step_seconds: float  # with all weights on the device
    once_seconds: float  # copies before and after the loop, per edit

    def slow_down(self, steps: int = 30) -> float:
        """Seconds of an edit by those of a resident one, as far as copies and blocks go."""
        return (self.once_seconds + steps * self.step_seconds) / (steps * self.resident_step_seconds)

    def __str__(self) -> str:
        return (
            f"streamed_parts={len(self.streamed)} ring={self.slots}x{self.slot_bytes / 2**20:.0f}MiB "
            f"peak={self.peak_bytes / 2**30:.2f}GiB step={1e3 * self.step_seconds:.1f}ms "
            f"resident_step={1e3 * self.resident_step_seconds:.1f}ms copies_outside={self.once_seconds:.2f}s "
            f"slow_down={self.slow_down():.2f}"
        )


def make_plan(need: Need, budget_bytes: int, copy_bytes_per_second: float, steps: int = 30) -> Plan:
    """The fastest plan that fits a budget.

    Args:
        copy_bytes_per_second: from host memory to the device.
        steps: of the edit to plan for.
    Raises:
        BudgetError: not even streaming everything fits.
    """
    plans = [
        _describe(need, streamed, slots, copy_bytes_per_second)
        for slots, needed in _layouts(need)
        if _peak(need, needed, slots) <= budget_bytes
        for streamed in [_keep_more(need, needed, slots, budget_bytes)]
    ]
    if not plans:
        raise BudgetError(
            f"the VRAM budget is {_megabytes(budget_bytes)}; with its weights streamed this model needs "
            f"{_megabytes(least_budget(need))}: allow that much or more"
        )
    # What is predicted to be as fast is safer with less to copy.
    return min(plans, key=lambda plan: (round(plan.slow_down(steps), 2), plan.step_bytes, plan.peak_bytes))


def least_budget(need: Need) -> int:
    """Bytes with which `make_plan` finds a plan, and no fewer."""
    return min(_peak(need, streamed, slots) for slots, streamed in _layouts(need))


def _layouts(need: Need) -> Iterator[tuple[int, frozenset[str]]]:
    """(slots, streamed parts) in question: nothing streamed, or some of the loop and all that is needed once."""
    yield 0, frozenset()
    once = {part.name for part in need.once}
    for slots in RING_SLOTS:
        for loop in _streamed_in_loop(need.loop):
            yield slots, loop | once


def _keep_more(need: Need, streamed: frozenset[str], slots: int, budget_bytes: int) -> frozenset[str]:
    """What is still streamed when of the parts that are needed once as many stay as the budget allows."""
    room = budget_bytes - _peak(need, streamed, slots)
    staying = set()
    for part in need.once:
        if part.name in streamed and part.nbytes <= room:
            room -= part.nbytes
            staying.add(part.name)
    return streamed - staying


def _peak(need: Need, streamed: frozenset[str], slots: int) -> int:
    staying = sum(part.nbytes for part in (*need.loop, *need.once) if part.name not in streamed)
    return need.fixed_bytes + need.working_bytes + staying + slots * _slot_bytes(need, streamed)


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
    )


def _streamed_in_loop(loop: Sequence[Part]) -> Iterator[frozenset[str]]:
    """Choices of what is streamed in the loop: 0, 1, 2, ... parts, the lightest kind first, or all kinds alike."""
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
    """That many of the names, at even distances."""
    return [names[(2 * i + 1) * len(names) // (2 * count)] for i in range(count)]


def seconds_per_step(loop: Sequence[Part], streamed: frozenset[str], slots: int, rate: float) -> float:
    """Seconds of a step once the ring is running.

    Copies go one after the other. A slot is free for the next copy when the part before has been computed with; a
    streamed part begins when its copy is there.
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


def _megabytes(nbytes: int) -> str:
    """In whole MiB, rounded up: what is said to be enough is."""
    return f"{-(-nbytes // 2**20):,} MiB"
