"""A small transformer to compile, and a compiler that has compiled nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.random_model import random_weights
from kontext.config import TransformerConfig
from kontext.sampling import position_ids
from kontext.step_cache import CachedSteps, StepCache
from kontext.transformer import Conditioning, Transformer

CONFIG = TransformerConfig(
    hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=2, depth_single_blocks=3, context_in_dim=16, vec_in_dim=8
)


@contextmanager
def forgotten_graphs() -> Iterator[None]:
    """A compiler that has compiled nothing yet, within the block."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def transformer() -> Transformer:
    with torch.device("meta"):
        network = Transformer(CONFIG).eval().requires_grad_(False)
    network.load_state_dict(random_weights(network, seed=3), assign=True)
    return network


@torch.inference_mode()
def velocity(network: Transformer, rows: int, columns: int, step: int = 1) -> Tensor:
    conditioning, latents = inputs(network, rows, columns, timesteps=(1.0, 0.5))
    predicted: Tensor = network(latents, step, conditioning)
    return predicted


@torch.inference_mode()
def repeated_step(network: Transformer) -> tuple[Tensor, Tensor, Tensor]:
    """Velocity of a step, the same with a step cache, and that of the next step, equal and skipped."""
    conditioning, latents = inputs(network, 4, 6, timesteps=(0.5, 0.5))
    cached = CachedSteps(StepCache(0.01, warm_up_steps=0, last_steps=0), 2)
    computed, skipped = (network(latents, step, conditioning, cached) for step in (0, 1))
    assert cached.computed == 1
    return network(latents, 0, conditioning), computed, skipped


def inputs(network: Transformer, rows: int, columns: int, timesteps: tuple[float, ...]) -> tuple[Conditioning, Tensor]:
    """An edit of random text and tokens: what is known before its first step, and latents."""
    draw = torch.Generator().manual_seed(rows)
    ids = torch.cat((position_ids(0, rows, columns), position_ids(1, rows, columns)), dim=1)
    conditioning = network.condition(
        torch.randn(1, 10, 16, generator=draw),
        torch.randn(1, 8, generator=draw),
        guidance=torch.full((1,), 2.5),
        timesteps=torch.tensor(timesteps).unsqueeze(1),
        img_ids=ids,
        references=torch.randn(1, rows * columns, 64, generator=draw),
    )
    return conditioning, torch.randn(1, rows * columns, 64, generator=draw)
