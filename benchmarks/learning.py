"""Edits per second of a training of the bundled model: as it is, compiled, and with plain attention too.

    python -m benchmarks.learning [--repetitions 5]

One process, one thread, on a CPU: forward and backward of one batch, as `python -m training flow` does them, without
the drawing of edits and the optimizers' step. The variants take turns. Takes about four minutes, mostly to compile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch

from benchmarks.report import parser, publish
from benchmarks.timing import take_turns, timed
from kontext.compile import compile_blocks
from kontext.config import Resolution
from kontext.networks import load_networks
from kontext.weights.layout import find_model
from training.flow import FlowModel, random_times
from training.lessons import Batch, Pool
from training.plans import ALL
from training.ranks import channels_last
from training.speed import PlainAttention

MODEL = Path(__file__).parents[1] / "models" / "tiny"
BATCHES: dict[Resolution, int] = {(128, 128): 32, (256, 256): 8}
CPU = torch.device("cpu")


def measure(repetitions: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    figures = {f"{width}x{height}": edits_per_second((width, height), repetitions) for width, height in BATCHES}
    return {"repetitions": repetitions, "threads": 1, "edits_per_second": figures}


def edits_per_second(size: Resolution, repetitions: int) -> dict[str, float]:
    """Edits per second of every variant."""
    steps = {
        "as it is": learner(size, compiled=False, plain=False),
        "compiled": learner(size, compiled=True, plain=False),
        "compiled, plain attention": learner(size, compiled=True, plain=True),
    }
    seconds = take_turns({name: partial(timed, step) for name, step in steps.items()}, repetitions)
    return {name: round(BATCHES[size] / median(taken), 1) for name, taken in seconds.items()}


def learner(size: Resolution, compiled: bool, plain: bool) -> Callable[[], None]:
    """A step of learning that is warm."""
    files = find_model(MODEL)
    networks = load_networks(files, torch.float32)
    encoder = channels_last(networks.autoencoder.requires_grad_(False), CPU)
    model = FlowModel(networks, files.config).requires_grad_(True)
    batch = Pool(encoder, size, ALL, Random(0), uses=1, capacity=64).batch(BATCHES[size])
    if compiled:
        compile_blocks(model.transformer)

    def step() -> None:
        t, noise, guidance = drawn(batch)
        with torch.autocast("cpu", torch.bfloat16), PlainAttention() if plain else nullcontext():
            loss = model(batch, t, noise, guidance).mean()
        model.zero_grad()
        torch.autograd.backward(loss)

    step()
    return step


def drawn(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(t, noise, guidance), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    samples, tokens, _ = batch.target.shape
    noise = torch.randn(batch.target.shape, generator=generator)
    return random_times(samples, tokens, generator), noise, torch.full((samples,), 2.5)


if __name__ == "__main__":
    publish("learning", measure(**vars(parser(__doc__, repetitions=5).parse_args())))
