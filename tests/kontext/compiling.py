"""A small transformer to compile, and a compiler that has compiled nothing yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.random_model import random_weights
from kontext.config import TransformerConfig
from kontext.sampling import position_ids
from kontext.transformer import Transformer

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
    draw = torch.Generator().manual_seed(rows)
    ids = torch.cat((position_ids(0, rows, columns), position_ids(1, rows, columns)), dim=1)
    conditioning = network.condition(
        torch.randn(1, 10, 16, generator=draw),
        torch.randn(1, 8, generator=draw),
        guidance=torch.full((1,), 2.5),
        timesteps=torch.tensor([[1.0], [0.5]]),
        img_ids=ids,
        references=torch.randn(1, rows * columns, 64, generator=draw),
    )
    return network(torch.randn(1, rows * columns, 64, generator=draw), step, conditioning)
