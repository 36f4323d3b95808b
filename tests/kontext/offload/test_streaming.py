"""Streamed weights: whatever is streamed, and however slowly, the picture is the resident one, bit for bit.

The device is a stand-in: a thread copies at a bus's rate while the CPU computes, and what a slot held before is
destroyed the moment it is given away, so that weights used too early or too late are seen in the picture.
"""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import kontext
from kontext.offload.copies import Copies, ThreadCopies
from kontext.offload.memory import Resident, Streamed
from kontext.offload.needs import Workload
from kontext.offload.pieces import Piece, places_beside
from kontext.offload.planner import Plan
from kontext.offload.streaming import Streamer
from kontext.offload.workload import native_workload
from kontext.weights.values import Values
from tests.kontext.golden import PICTURE
from tests.kontext.offload.standin_device import (
    CPU,
    FAST,
    AsPlanned,
    Chosen,
    DestructiveCopies,
    WitnessedCopies,
    load,
)

SLOW = 5e7


class Cancelled(Exception):
    pass


def edit(model: kontext.Kontext, steps: int = 3, **settings: Any) -> np.ndarray:
    return np.asarray(model.edit(PICTURE, "Remove the logo", num_inference_steps=steps, seed=5, **settings))


@cache
def resident_picture(steps: int = 3) -> np.ndarray:
    return edit(load(Resident(CPU)), steps)


@cache
def piece_names() -> tuple[str, ...]:
    return tuple(piece.name for piece in all_pieces(load(Resident(CPU))))


def all_pieces(model: kontext.Kontext) -> list[Piece]:
    return [piece for stage in native_workload(model).stages for piece in (*stage.once, *stage.loop)]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_copy_waits_until_its_slot_is_no_longer_used(slots: int) -> None:
    copies = WitnessedCopies()
    model = load(Chosen(CPU, lambda name: True, slots, copies))

    def cancel(done: int, total: int) -> None:
        raise Cancelled

    edit(model)
    with pytest.raises(Cancelled):
        edit(model, on_step=cancel)
    edit(model)

    assert copies.copied > 3 * len(piece_names())


@pytest.mark.parametrize("rate", [FAST, SLOW])
@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_streaming_everything_gives_the_resident_picture(slots: int, rate: float) -> None:
    model = load(AsPlanned(lambda name: True, slots, rate))

    assert np.array_equal(edit(model), resident_picture())
    assert np.array_equal(edit(model), resident_picture())  # and again, with what the first edit left in the slots


def test_streamed_bfloat16_gives_the_resident_picture() -> None:
    resident, streamed = (load(memory, torch.bfloat16) for memory in (Resident(CPU), AsPlanned(lambda name: True)))

    assert np.array_equal(edit(streamed, steps=1), edit(resident, steps=1))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), slots=st.integers(1, 4), steps=st.integers(1, 3))
def test_any_plan_gives_the_resident_picture(data: st.DataObject, slots: int, steps: int) -> None:
    streamed = data.draw(st.sets(st.sampled_from(piece_names())))
    model = load(AsPlanned(lambda name: name in streamed, slots))

    assert np.array_equal(edit(model, steps), resident_picture(steps))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("slots", [1, 3, 4])
def test_on_every_gpu_streaming_gives_the_resident_picture(slots: int) -> None:
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        model = load(Chosen(gpu, lambda name: True, slots))

        assert np.array_equal(edit(model), edit(load(Resident(gpu))))


def test_the_destroyed_slots_would_be_seen() -> None:
    class Hasty(AsPlanned):
        """Computes without waiting for the copy."""

        def plan_for(self, workload: Workload, copies: Copies) -> Plan:
            self.copies.wait = lambda copied: None  # type: ignore[method-assign]
            return super().plan_for(workload, copies)

    model = load(Hasty(lambda name: "single" in name, rate=1e6))

    try:
        picture = edit(model)
    except kontext.NotANumber:  # whatever the slots held
        return
    assert not np.array_equal(picture, resident_picture())


def test_pieces_are_copied_once_per_use_and_fetched_ahead_over_the_end_of_a_step() -> None:
    memory = AsPlanned(lambda name: name in ("double.0", "single.1"), slots=2)
    model = load(memory)
    steps, before = 4, len(memory.copies.sizes)

    edit(model, steps)

    # Each at every step, and two more that were fetched for a step that did not come.
    assert len(memory.copies.sizes) - before == 2 * steps + 2


@pytest.mark.parametrize("streamed", ["", "single", "t5", "e"])
def test_the_device_holds_what_was_planned_and_nothing_is_allocated_during_an_edit(streamed: str) -> None:
    memory = AsPlanned(lambda name: streamed and streamed in name)
    model = load(memory)
    staying = [piece.nbytes for piece in all_pieces(model) if not streamed or streamed not in piece.name]
    assert memory.plan is not None
    planned = sum(staying) + memory.plan.slots * memory.plan.slot_bytes

    assert memory.copies.device_bytes == planned
    edit(model)
    assert memory.copies.device_bytes == planned


def test_the_peak_of_a_plan_is_what_the_device_is_asked_for() -> None:
    copies = ThreadCopies(CPU)
    memory = Streamed(CPU, budget_bytes=None, copies=copies)
    model = load(memory)
    workload = native_workload(model)
    fixed = [place.tensor.nbytes for part in workload.networks for place in places_beside(part, all_pieces(model))]

    assert memory.plan is not None
    assert memory.plan.peak_bytes == copies.device_bytes + sum(fixed) + min(way.nbytes for way in workload.working)


def test_weights_are_never_copied_back() -> None:
    model = load(AsPlanned(lambda name: True))
    block = model.networks.transformer.single_blocks[0]
    at_home = block.linear1.weight.data_ptr()
    block.linear1.weight.zero_()  # the host's copy is the only one

    edit(model)

    assert block.linear1.weight.data_ptr() == at_home
    assert not block.linear1.weight.any()


@pytest.mark.parametrize("rate", [FAST, SLOW])
@pytest.mark.parametrize("after", [1, 2])
def test_a_cancelled_edit_leaves_the_model_usable(after: int, rate: float) -> None:
    model = load(AsPlanned(lambda name: True, rate=rate))

    def cancel(done: int, total: int) -> None:
        if done == after:
            raise Cancelled

    for _ in range(2):
        with pytest.raises(Cancelled):
            edit(model, on_step=cancel)

    assert np.array_equal(edit(model), resident_picture())


def test_a_block_that_fails_leaves_the_model_usable() -> None:
    model = load(AsPlanned(lambda name: True))
    block = model.networks.transformer.double_blocks[1]

    def fail(module: nn.Module, arguments: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = block.img_mlp.register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError):
        edit(model)
    hook.remove()

    assert np.array_equal(edit(model), resident_picture())


def test_modules_called_out_of_order_get_their_own_weights() -> None:
    layers = [nn.Linear(64, 64) for _ in range(4)]
    x = torch.randn(1, 64)
    expected = [layer(x) for layer in layers]
    pieces = [Piece(str(i), layer) for i, layer in enumerate(layers)]
    streamer = Streamer(DestructiveCopies(FAST), slots=2, slot_bytes=pieces[0].nbytes)
    streamed = [streamer.take(piece) for piece in pieces]

    with streamer.stage(once=[], loop=streamed):
        for i in (2, 0, 0, 3, 1, 2, 3, 0, 1, 1):
            assert torch.equal(layers[i](x), expected[i])
    assert torch.equal(layers[1](x), expected[1])  # outside of any stage too

    streamer.close()
    assert torch.equal(layers[2](x), expected[2])


def test_a_copy_that_fails_is_raised_where_it_is_needed() -> None:
    copies = ThreadCopies(CPU)

    copied = copies.copy(torch.empty(4, dtype=torch.uint8), torch.empty(5, dtype=torch.uint8), None)

    with pytest.raises(RuntimeError, match="size of tensor"):
        copies.wait(copied)


def test_a_packed_piece_keeps_values_dtypes_and_memory_order() -> None:
    module = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module.register_buffer("ids", torch.arange(7))
    module.register_buffer("scale", torch.tensor(2.5, dtype=torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    strides = module.weight.stride()
    piece = Piece("conv", module)

    piece.pack(torch.empty(piece.nbytes, dtype=torch.uint8))

    after = module.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    assert module.weight.stride() == strides
    assert isinstance(module.weight, nn.Parameter)


def test_an_edit_that_did_not_fit_runs_with_spare_memory() -> None:
    model = load(Resident(CPU))

    with model.spare_memory():
        assert isinstance(model.memory, Streamed)
        assert np.array_equal(edit(model), resident_picture())

    assert isinstance(model.memory, Resident)
    assert np.array_equal(edit(model), resident_picture())


def test_a_model_whose_weights_cannot_go_back_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Resident(CPU)
    model = load(memory)

    def hold(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 374.00 MiB.")

    with (
        pytest.raises(kontext.ModelLost, match=r"cannot go back .* \(CUDA out of memory.\); load"),
        model.spare_memory(),
    ):
        monkeypatch.setattr(memory, "hold", hold)


def test_tensors_of_an_edit_that_failed_are_not_in_the_way_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Resident(CPU)
    model = load(memory)
    tensors: list[weakref.ref[torch.Tensor]] = []
    left: list[object] = []
    hold = memory.hold

    def fail() -> None:
        tensor = torch.ones(4)
        tensors.append(weakref.ref(tensor))
        raise Cancelled

    def note_and_hold(workload: Workload, values: Values) -> None:
        left.extend(tensor() for tensor in tensors)
        hold(workload, values)

    monkeypatch.setattr(memory, "hold", note_and_hold)

    with pytest.raises(Cancelled), model.spare_memory():
        fail()

    assert left == [None]


def test_a_streaming_model_can_spare_memory_and_stream_again() -> None:
    memory = AsPlanned(lambda name: True)
    model = load(memory)

    def spare_and_cancel() -> None:
        with model.spare_memory():
            raise Cancelled

    with pytest.raises(Cancelled):
        spare_and_cancel()

    assert model.memory is memory
    assert np.array_equal(edit(model), resident_picture())
