"""A stand-in for a device that weights are streamed to: a thread copies at a bus's rate while the CPU computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import kontext
from kontext import loading
from kontext.device import default_dtype
from kontext.loading import place
from kontext.networks import load_networks
from kontext.offload.copies import Copies, Mark, ThreadCopies
from kontext.offload.memory import Memory, Streamed
from kontext.offload.needs import Workload
from kontext.offload.planner import Plan
from kontext.weights.layout import find_model
from tests.kontext.golden import MODEL

CPU = torch.device("cpu")
FAST = 2e9  # bytes per second: a block of the golden model in some 0.1 ms
DTYPE = default_dtype(CPU, "auto", "bf16")
"""What this processor computes in: bytes are streamed, whatever they mean, and bfloat16 without its instructions takes
20 times as long."""


class DestructiveCopies(ThreadCopies):
    """Overwrites a slot with nonsense when it is given away, and fills it when the copy is due."""

    def __init__(self, bytes_per_second: float) -> None:
        super().__init__(CPU, bytes_per_second)
        self.sizes: list[int] = []

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        target.fill_(0xFF)  # not a number, in every dtype
        self.sizes.append(target.nbytes)
        return super().copy(target, source, after)


class WitnessedCopies(ThreadCopies):
    """Tells whether a copy would overwrite weights on a device that is behind, as CUDA is.

    The CPU has done all work when a mark is made, and would forgive a wrong one. Here marks are numbered, and a copy
    into a slot must be told to wait for one that was made after the slot's last use had begun.
    """

    def __init__(self) -> None:
        super().__init__(CPU)
        self.marks = 0
        self.copied = 0
        self.last_use: dict[int, int] = {}  # marks made when what lies at an address was last used
        self.targets: dict[int, int] = {}  # addresses, by the identity of the mark of a copy

    def mark(self) -> Mark:
        self.marks += 1
        return self.marks

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        assert after is not None
        assert after > self.last_use.get(target.data_ptr(), 0), "the slot may still be in use"
        copied = super().copy(target, source, after)
        self.targets[id(copied)] = target.data_ptr()
        self.copied += 1
        return copied

    def wait(self, copied: Mark) -> None:
        super().wait(copied)
        self.last_use[self.targets[id(copied)]] = self.marks


class Chosen(Streamed):
    """Streams the pieces it is told to."""

    def __init__(self, device: torch.device, streamed: Any, slots: int, copies: Copies | None = None) -> None:
        super().__init__(device, None, copies)
        self.wanted, self.slots = streamed, slots

    def plan_for(self, workload: Workload, copies: Copies) -> Plan:
        pieces = {piece.name: piece for stage in workload.stages for piece in (*stage.once, *stage.loop)}
        streamed = frozenset(name for name in pieces if self.wanted(name))
        slot_bytes = max((pieces[name].nbytes for name in streamed), default=0)
        return Plan(streamed, self.slots, slot_bytes, 0, 0, 1.0, 1.0, 0.0)


class AsPlanned(Chosen):
    """Streams them on the stand-in device."""

    def __init__(self, streamed: Any, slots: int = 3, rate: float = FAST) -> None:
        self.copies = DestructiveCopies(rate)
        super().__init__(CPU, streamed, slots, self.copies)


def load(memory: Memory, dtype: torch.dtype = DTYPE) -> kontext.Kontext:
    """The golden model in a memory."""
    files = find_model(MODEL)
    model = kontext.Kontext(
        load_networks(files, dtype),
        files.config,
        fingerprint="",
        memory=memory,
        seam_dtype=torch.bfloat16,
        max_sequence_length=64,
        image_options=kontext.ImageOptions(),
    )
    place(model)
    return model


def load_streamed(model: Path | None = MODEL, **options: Any) -> kontext.Kontext:
    """A model by `kontext.load`, all of it streamed; small models hardly stream within any budget that they accept."""
    memory = AsPlanned(lambda name: True)
    with patch.object(loading, "memory_for", lambda *_: memory):
        loaded = kontext.load(model, device="cpu", **options)
    assert loaded.memory is memory
    assert memory.plan is not None
    assert memory.plan.streamed
    return loaded
