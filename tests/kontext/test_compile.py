"""Compiled blocks: the same pictures, and nothing compiled again once the model is warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kontext.compile import compile_blocks
from kontext.config import TransformerConfig
from kontext.sampling import position_ids
from kontext.transformer import Transformer
from tests.parity.closeness import assert_close
from tests.parity.random_model import random_weights

CONFIG = TransformerConfig(
    hidden_size=64, num_heads=2, axes_dim=(8, 12, 12), depth=2, depth_single_blocks=3, context_in_dim=16, vec_in_dim=8
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
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


# torch raises it within itself.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
# Capture alone is tried for speed; "inductor" writes, compiles and runs the kernels, here those of a CPU.
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_blocks_compute_the_same(backend: str) -> None:
    plain, compiled = transformer(), transformer()
    compile_blocks(compiled, backend)

    for grid in ((4, 6), (5, 3)):
        assert_close(velocity(compiled, *grid), velocity(plain, *grid))


def test_a_warm_model_is_not_compiled_again_for_other_blocks_steps_or_sizes() -> None:
    network = transformer()
    compile_blocks(network, "eager")
    velocity(network, 4, 6)

    with torch._dynamo.config.patch(error_on_recompile=True):
        for grid in ((4, 6), (5, 3), (7, 9), (12, 2), (8, 8)):
            velocity(network, *grid, step=0)

    # Double block, single block, and the last single block, whose rows are the target's.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def test_weights_that_move_need_no_new_graph() -> None:
    network = transformer()
    compile_blocks(network, "eager")
    before = velocity(network, 4, 6)

    for block in network.single_blocks:
        for name, weight in list(block.linear1.named_parameters()):
            setattr(block.linear1, name, torch.nn.Parameter(weight.clone(), requires_grad=False))

    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(velocity(network, 4, 6), before)
