"""The budget against what the driver counts: the context, other programs, and memory that is not there."""

from __future__ import annotations

import logging
import re

import pytest
import torch

import kontext
from kontext import BudgetError, DeviceTaken
from kontext.device import DeviceMemory
from kontext.offload import memory as offload
from kontext.offload.copies import copies_for
from kontext.offload.memory import Resident, Streamed, memory_for
from kontext.offload.needs import LATER_BYTES, MOST_CONTEXT_BYTES, needs_of
from kontext.offload.planner import Plan, resident_bytes
from kontext.offload.workload import native_workload
from kontext.pipeline import Kontext
from tests.kontext.golden import MODEL
from tests.kontext.offload.standin_device import CPU, AsPlanned, load

GIB = 2**30
MIB = 2**20


@pytest.fixture(scope="module")
def model() -> Kontext:
    return load(AsPlanned(lambda name: False), torch.float32)


def planned(monkeypatch: pytest.MonkeyPatch, model: Kontext, budget: int | None, device: DeviceMemory) -> Plan:
    monkeypatch.setattr(offload, "device_memory", lambda _: device)
    memory = Streamed(CPU, budget)
    return memory.plan_for(native_workload(model), copies_for(CPU))


def test_the_context_is_measured_and_the_plan_leaves_room_for_what_comes_later(
    monkeypatch: pytest.MonkeyPatch, model: Kontext
) -> None:
    tensors = planned(monkeypatch, model, None, DeviceMemory(16 * GIB, free=16 * GIB, reserved=0)).peak_bytes
    context, reserved = 900 * MIB, 50 * MIB
    device = DeviceMemory(16 * GIB, free=16 * GIB - context - reserved, reserved=reserved)

    assert planned(monkeypatch, model, None, device).peak_bytes == tensors + context
    assert tensors > LATER_BYTES


def test_a_budget_that_other_programs_leave_too_little_of_is_planned_within_what_is_free(
    monkeypatch: pytest.MonkeyPatch, model: Kontext, caplog: pytest.LogCaptureFixture
) -> None:
    # 500 MiB of our own context cannot be told from 2 GiB of a desktop: at most 1.5 GiB count as ours.
    device = DeviceMemory(4 * GIB, free=4 * GIB - 2 * GIB - 500 * MIB, reserved=0)

    with caplog.at_level(logging.WARNING, "kontext"):
        plan = planned(monkeypatch, model, 4 * GIB, device)

    assert plan.peak_bytes <= MOST_CONTEXT_BYTES + device.free
    assert "offload_budget_is_not_free" in caplog.text


def test_a_device_that_others_have_filled_is_named_and_not_the_budget(
    monkeypatch: pytest.MonkeyPatch, model: Kontext
) -> None:
    device = DeviceMemory(16 * GIB, free=10 * MIB, reserved=0)
    monkeypatch.setattr(offload, "device_memory", lambda _: device)
    monkeypatch.setattr(offload, "measure", None)  # which takes memory
    workload = native_workload(model)

    for memory in (Streamed(CPU, 16 * GIB), memory_for(workload, CPU, None, None)):
        assert isinstance(memory, Streamed)
        with pytest.raises(DeviceTaken, match=re.escape("other programs leave 1,546 MiB of the device")):
            memory.plan_for(workload, copies_for(CPU))


def test_a_device_that_is_too_small_is_not_blamed_on_others(monkeypatch: pytest.MonkeyPatch, model: Kontext) -> None:
    device = DeviceMemory(700 * MIB, free=10 * MIB, reserved=0)
    monkeypatch.setattr(offload, "device_memory", lambda _: device)
    memory = memory_for(native_workload(model), CPU, None, None)
    assert isinstance(memory, Streamed)

    with pytest.raises(BudgetError, match="the VRAM budget is 700 MiB; with its weights streamed"):
        memory.plan_for(native_workload(model), copies_for(CPU))


def test_a_budget_that_is_too_small_is_still_named(monkeypatch: pytest.MonkeyPatch, model: Kontext) -> None:
    device = DeviceMemory(16 * GIB, free=15 * GIB, reserved=0)

    with pytest.raises(BudgetError, match="the VRAM budget is 700 MiB; with its weights streamed"):
        planned(monkeypatch, model, 700 * MIB, device)


@pytest.mark.parametrize(
    ("spare", "budget", "is_streamed"),
    [(0, None, False), (-1, None, True), (8 * GIB, 8 * GIB, False), (8 * GIB, -1, True)],
)
def test_auto_streams_only_where_the_model_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, model: Kontext, spare: int, budget: int | None, is_streamed: bool
) -> None:
    context = 400 * MIB
    empty = DeviceMemory(context, free=0, reserved=0)
    needed = resident_bytes(needs_of(native_workload(model), 0.0, empty))
    free = needed - context + spare
    monkeypatch.setattr(offload, "device_memory", lambda _: DeviceMemory(context + free, free, reserved=0))
    if budget is not None and budget < 0:
        budget += needed

    chosen = memory_for(native_workload(model), CPU, None, budget)

    assert isinstance(chosen, Streamed if is_streamed else Resident)
    if isinstance(chosen, Streamed):
        plan = chosen.plan_for(native_workload(model), copies_for(CPU))
        assert plan.streamed
        assert plan.peak_bytes <= (budget or context + free)


def test_auto_streams_nothing_where_device_and_host_share_their_memory() -> None:
    assert isinstance(kontext.load(MODEL, device="cpu", offload=None).memory, Resident)


@pytest.mark.parametrize(("beyond", "is_returned"), [(0, False), (1, True)])
def test_cached_memory_is_returned_only_where_the_next_stage_could_exceed_the_plan(
    monkeypatch: pytest.MonkeyPatch, beyond: int, is_returned: bool
) -> None:
    used = DeviceMemory(64 * GIB, free=60 * GIB, reserved=0)
    monkeypatch.setattr(offload, "device_memory", lambda _: used)
    memory = Streamed(CPU, 64 * GIB)
    held = load(memory, torch.float32)
    assert memory.plan is not None
    assert memory.plan.working_bytes is not None
    context = min(used.other, MOST_CONTEXT_BYTES) + LATER_BYTES
    reserved = memory.plan.peak_bytes - context - memory.plan.working_bytes + beyond
    used = DeviceMemory(64 * GIB, free=50 * GIB, reserved=reserved)
    returned: list[torch.device] = []
    monkeypatch.setattr(offload, "release_cached_memory", returned.append)

    with memory.on_device(held.networks.transformer):
        pass

    assert bool(returned) is is_returned
