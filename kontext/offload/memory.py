"""Placement of weights: all on the device, or as many as a budget allows with the others streamed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import nn

from kontext.choices import DEFAULT_BUDGET_BYTES
from kontext.device import DeviceMemory, device_memory, release_cached_memory
from kontext.errors import DeviceTaken, ModelLost
from kontext.offload.copies import Copies, copies_for
from kontext.offload.host_memory import available_host_bytes
from kontext.offload.needs import Workload, available_to_us, measure, needs_of, pieces_of
from kontext.offload.pieces import Place, places, places_beside
from kontext.offload.planner import Need, Plan, least_budget, make_plan, megabytes, resident_bytes
from kontext.offload.streaming import StreamedPiece, Streamer
from kontext.weights.values import AT_ONCE, Values

log = logging.getLogger(__name__)

USABLE = 0.9  # of the memory that is free: the rest is too scattered for large tensors; an estimate
GIB = 2**30


class Memory(Protocol):
    """Strategy that has a network's weights on the device while its stage runs."""

    device: torch.device
    home_of_adapters: torch.device  # of LoRA layers between two uses
    workload: Workload | None  # that is held

    def hold(self, workload: Workload, values: Values = AT_ONCE) -> None:
        """Place a model's weights.

        Args:
            values: where their values come from, at once or later; measurements do not need them.
        """

    def release(self) -> None:
        """Point the modules to the tensors that they had before, and give back all memory of the weights."""

    def room_bytes(self) -> int | None:
        """Memory that tensors of an edit may take besides weights; None where nothing is known to bound it."""

    def dry(self) -> AbstractContextManager[None]:
        """Context in which a network computes with whatever values: none are copied to the device."""

    def on_device(self, network: nn.Module) -> AbstractContextManager[object]:
        """Context in which the weights of a stage's network are on the device whenever they are used."""


class Resident(Memory):
    """Memory that keeps all weights on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = self.home_of_adapters = device
        self.workload: Workload | None = None
        self._former: list[Callable[[], None]] = []

    def hold(self, workload: Workload, values: Values = AT_ONCE) -> None:
        self.workload = workload
        self._former = _ways_back(workload)
        for place in _all_places(workload):
            place.move(self.device, values.fill)

    def release(self) -> None:
        _go_back(self._former)
        release_cached_memory(self.device)

    def room_bytes(self) -> int | None:
        memory = device_memory(self.device)
        return None if memory is None else int(USABLE * memory.available)

    def dry(self) -> AbstractContextManager[None]:
        return nullcontext()

    def on_device(self, network: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()


class Streamed(Memory):
    """Memory that keeps as many weights on the device as the budget allows and streams the others.

    Args:
        budget_bytes: limit of the device's memory, for weights and everything else; None for the smallest possible.
        copies: implementation of the copies to the device; None for its fastest.
    """

    def __init__(self, device: torch.device, budget_bytes: int | None, copies: Copies | None = None) -> None:
        self.device = device
        self.home_of_adapters = torch.device("cpu")  # on the device those of one block at a time
        self.budget_bytes = budget_bytes
        self.plan: Plan | None = None
        self._context_bytes = 0
        self._copies = copies
        self.workload: Workload | None = None
        self._streamer: Streamer | None = None
        self._former: list[Callable[[], None]] = []
        self._stages: dict[nn.Module, tuple[list[StreamedPiece], list[StreamedPiece]]] = {}

    def hold(self, workload: Workload, values: Values = AT_ONCE) -> None:
        """Make a plan, then place the weights by it.

        Raises:
            BudgetError: the budget is too small even with everything streamed.
            DeviceTaken: other programs leave too little of the device's memory.
        """
        copies = self._copies or copies_for(self.device)
        self.plan = self.plan_for(workload, copies)
        _check_host(sum(piece.nbytes for piece in pieces_of(workload) if piece.name in self.plan.streamed))
        self.workload = workload
        self._former = _ways_back(workload)
        self._place(workload, self.plan, copies, values)

    def plan_for(self, workload: Workload, copies: Copies) -> Plan:
        """Plan for a model, from the copy rate and block time measured on this machine."""
        loop = [piece for stage in workload.stages for piece in stage.loop]
        memory = device_memory(self.device)
        self._check_others(needs_of(workload, 0.0, memory), memory)  # before anything is taken
        rate, block_seconds = measure(loop[0], workload.prepare_block(), copies)
        release_cached_memory(self.device)  # of the measurements
        memory = device_memory(self.device)
        needs = needs_of(workload, block_seconds, memory)
        self._context_bytes = needs[0].context_bytes
        budget = least_budget(needs) if self.budget_bytes is None else self._budget_within(needs, memory)
        plan = make_plan(needs, budget, rate)
        log.info(
            "offload_plan copy=%.1fGB/s block=%.2fms context=%.2fGiB budget=%.2fGiB %s",
            rate / 1e9,
            1e3 * block_seconds,
            needs[0].context_bytes / GIB,
            budget / GIB,
            plan,
        )
        return plan

    def _check_others(self, needs: Sequence[Need], memory: DeviceMemory | None) -> None:
        """Check that other programs leave enough of the device, where budget and device alone would do.

        Raises:
            DeviceTaken: they do not.
        """
        if memory is None or self.budget_bytes is None:
            return
        available, least = available_to_us(memory), least_budget(needs)
        if available < least <= min(self.budget_bytes, memory.total):
            raise DeviceTaken(
                f"the VRAM budget is {megabytes(self.budget_bytes)}, but other programs leave "
                f"{megabytes(available)} of the device, and with its weights streamed this model needs "
                f"{megabytes(least)}: end some of them, or take another device"
            )

    def _budget_within(self, needs: Sequence[Need], memory: DeviceMemory | None) -> int:
        """The budget, or what this process can have of the device where that is less.

        Raises:
            DeviceTaken: other programs leave too little.
        """
        assert self.budget_bytes is not None
        self._check_others(needs, memory)
        if memory is None or self.budget_bytes < least_budget(needs):  # the plan names such a budget
            return self.budget_bytes
        available = available_to_us(memory)
        if available < self.budget_bytes:
            log.warning("offload_budget_is_not_free free=%s budget=%s", available, self.budget_bytes)
        return min(self.budget_bytes, available)

    def release(self) -> None:
        if self._streamer is None or self.workload is None:
            return
        self._streamer.close()
        self._streamer, self._stages = None, {}
        _go_back(self._former)
        release_cached_memory(self.device)

    def room_bytes(self) -> int | None:
        return None if self.plan is None else self.plan.working_bytes

    def dry(self) -> AbstractContextManager[None]:
        if self._streamer is None:
            raise RuntimeError("no model is held; call hold first")
        return self._streamer.dry()

    @contextmanager
    def on_device(self, network: nn.Module) -> Iterator[None]:
        if self._streamer is None:
            raise RuntimeError("no model is held; call hold first")
        try:
            with self._streamer.stage(*self._stages[network]):
                yield
        finally:
            self._leave_room()

    def _leave_room(self) -> None:
        """Return cached memory if the next stage, which may find no use for its fragments, could exceed the plan.

        Each return waits for the device, the copies that run ahead included.
        """
        memory = device_memory(self.device)
        if memory is not None and self.plan is not None and self.plan.working_bytes is not None:
            planned = self.plan.peak_bytes - self._context_bytes
            if memory.reserved + self.plan.working_bytes <= planned:
                return
        release_cached_memory(self.device)

    def _place(self, workload: Workload, plan: Plan, copies: Copies, values: Values) -> None:
        self._streamer = Streamer(copies, plan.slots, plan.slot_bytes)
        taken: dict[str, StreamedPiece] = {}
        for piece in pieces_of(workload):
            if piece.name in plan.streamed:
                taken[piece.name] = self._streamer.take(piece, values)
            else:
                piece.pack(copies.device_buffer(piece.nbytes), values.fill)
        for network in workload.networks:
            for place in places_beside(network, pieces_of(workload)):
                place.move(self.device, values.fill)
        for stage in workload.stages:
            once, loop = ([taken[p.name] for p in pieces if p.name in taken] for pieces in (stage.once, stage.loop))
            self._stages[stage.network] = (once, loop)


def memory_for(workload: Workload, device: torch.device, offload: bool | None, budget_bytes: int | None) -> Memory:
    """The memory that the options ask for.

    Args:
        offload: None to stream weights only where the model does not fit as a whole.
        budget_bytes: limit of the device's memory; None for the default, or where offload is None for all that is free.
    """
    if offload is not None:
        return Streamed(device, budget_bytes or DEFAULT_BUDGET_BYTES) if offload else Resident(device)
    memory = device_memory(device)
    if memory is None:  # the device's memory is the host's
        return Resident(device)
    budget = min(memory.total, budget_bytes or memory.total)
    available = min(budget, available_to_us(memory))
    needed = resident_bytes(needs_of(workload, 0.0, memory))
    log.info(
        "offload_chosen streams=%s needed=%.2fGiB available=%.2fGiB", needed > available, needed / GIB, available / GIB
    )
    return Resident(device) if needed <= available else Streamed(device, budget)


@contextmanager
def spared(usual: Memory, values: Values = AT_ONCE) -> Iterator[Memory]:
    """Within the context all weights of a memory's model are streamed, and as little as possible is on the device.

    Slower by reading all weights again, into host memory and at the end to where they were.

    Raises:
        ModelLost: at the end the weights found no place where they were, as after another program took the memory.
    """
    workload = usual.workload
    if workload is None:
        raise RuntimeError("no model is held; call hold first")
    least = Streamed(usual.device, budget_bytes=None)
    try:
        usual.release()
        least.hold(workload, values)
        with values.reading():
            pass
        yield least
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # their tensors would be in the way of the weights
        raise
    finally:
        _put_back(least, usual, workload, values)


def _put_back(least: Memory, usual: Memory, workload: Workload, values: Values) -> None:
    try:
        least.release()
        values.clear()  # what a `least.hold` that failed has recorded
        usual.hold(workload, values)
        with values.reading():
            pass
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelLost(
            f"after an edit with all weights streamed they cannot go back to where they were ({reason}); "
            "load the model again"
        ) from error


def _check_host(streamed_bytes: int) -> None:
    """Log how much host memory streamed weights take; warn when it is not there, as the system may end the process."""
    available = available_host_bytes()
    log.info("host_memory streamed=%.2fGiB", streamed_bytes / GIB)
    if available is not None and available < streamed_bytes:
        log.warning(
            "host_memory_is_short streamed=%.2fGiB available=%.2fGiB: allow more memory, or a larger VRAM budget",
            streamed_bytes / GIB,
            available / GIB,
        )


def _all_places(workload: Workload) -> list[Place]:
    return places(module for network in workload.networks for module in network.modules())


def _ways_back(workload: Workload) -> list[Callable[[], None]]:
    """For every weight a function that puts the tensor of now into its place: a mapped one takes no memory."""
    return [partial(place.put, place.tensor) for place in _all_places(workload)]


def _go_back(ways: list[Callable[[], None]]) -> None:
    for way in ways:
        way()
    ways.clear()
