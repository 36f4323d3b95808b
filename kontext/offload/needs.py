"""What a model needs of a device: weights in parts, memory for everything else, and times measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kontext.device import DeviceMemory, synchronize
from kontext.offload.copies import Copies
from kontext.offload.pieces import Piece, Stage, places_beside
from kontext.offload.planner import Need, Part

USUAL_CONTEXT_BYTES = 600 * 2**20  # memory of the driver and its libraries, without tensors: an estimate, for tables
MOST_CONTEXT_BYTES = 3 * 2**29  # 1.5 GiB; what else the driver counts belongs to other processes
LATER_BYTES = 250 * 2**20  # libraries and kernels that the first edits load; with the context 0.7 to 0.8 GiB (H200)
FRAGMENTS = 0.06  # held by torch's allocator beyond its tensors: between none and the 0.11 of an H200 without growing
NOISE = 0.02  # standard deviation, similar to that of weights
COPIED_BYTES = 256 * 2**20  # for the copy rate: 5 ms of a fast bus
MEASUREMENTS = 3  # the fastest one counts: the first includes one-time setup


@dataclass(frozen=True)
class Working:
    """Memory without weights for the largest usual edit, and what doing with it costs in time."""

    nbytes: int
    extra_blocks: float = 0.0  # in times of a block, per edit


@dataclass(frozen=True)
class Workload:
    """Networks of a model, in host memory, with the stages and the memory they need on the device."""

    networks: Sequence[nn.Module]
    stages: Sequence[Stage]
    working: Sequence[Working]  # ways in which the model may run
    prepare_block: Callable[[], Callable[[], object]]  # for that edit; returns a function that runs a block


def measure(piece: Piece, run: Callable[[], object], copies: Copies) -> tuple[float, float]:
    """(bytes per second of a copy, seconds of a run), with random values in the piece that the run uses."""
    buffer = torch.empty(piece.nbytes, dtype=torch.uint8, device=copies.device)
    nbytes = min(piece.nbytes, COPIED_BYTES)
    host = copies.host_buffer(nbytes)
    copies.lock(host)
    copy_seconds = _fastest(lambda: copies.wait(copies.copy(buffer[:nbytes], host, copies.mark())), copies.device)
    copies.unlock(host)
    buffer.view(torch.bfloat16).normal_(std=NOISE)  # a GPU multiplies zeros faster than weights
    with piece.visiting(buffer):
        run_seconds = _fastest(run, copies.device)
    return nbytes / copy_seconds, run_seconds


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(MEASUREMENTS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def needs_of(workload: Workload, block_seconds: float, memory: DeviceMemory | None = None) -> list[Need]:
    """What a workload needs in each way in which it may run.

    Args:
        memory: that of the device before the weights are placed; None for a device that is host memory, too.
    """
    pieces = pieces_of(workload)
    total = sum(place.tensor.nbytes for network in workload.networks for place in places_beside(network, pieces))
    return [
        Need(
            loop=[Part(piece.name, piece.nbytes, block_seconds) for stage in workload.stages for piece in stage.loop],
            once=[Part(piece.name, piece.nbytes) for stage in workload.stages for piece in stage.once],
            fixed_bytes=total,
            working_bytes=working.nbytes,
            context_bytes=0 if memory is None else _context_of(memory) + LATER_BYTES,
            fragments=0.0 if memory is None else FRAGMENTS,
            extra_seconds=working.extra_blocks * block_seconds,
        )
        for working in workload.working
    ]


def _context_of(memory: DeviceMemory) -> int:
    """Memory of this process beside tensors; the driver does not divide it from that of others."""
    return min(memory.other, MOST_CONTEXT_BYTES)


def available_to_us(memory: DeviceMemory) -> int:
    """Memory that this process has or may take, its context included."""
    return _context_of(memory) + memory.reserved + memory.free


def pieces_of(workload: Workload) -> list[Piece]:
    return [piece for stage in workload.stages for piece in (*stage.once, *stage.loop)]
