"""Our transformer against `flux.model.Flux`: same weights, same inputs, every module's output."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.random_model import random_transformer_config, random_weights
from kontext import attention, layers, sampling
from kontext.config import TransformerConfig
from kontext.official import OfficialCode
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta, load_weights
from kontext.weights.layout import find_model
from tests.parity.closeness import DTYPES, assert_close

RANDOM_SEEDS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Pair:
    """The same weights in both networks."""

    ours: Transformer
    theirs: Any
    config: TransformerConfig


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(params=("bundled", *RANDOM_SEEDS))
def pair(request: pytest.FixtureRequest, official: OfficialCode, dtype: torch.dtype) -> Pair:
    return bundled_pair(official, dtype) if request.param == "bundled" else random_pair(official, dtype, request.param)


def test_velocity_is_the_same(pair: Pair, dtype: torch.dtype) -> None:
    for seed in range(3):
        inputs = random_inputs(pair.config, dtype, seed)

        assert_close(ours_forward(pair.ours, inputs), theirs_forward(pair.theirs, inputs), f"velocity, inputs {seed}")


def test_every_block_gives_the_same(pair: Pair, dtype: torch.dtype) -> None:
    inputs = random_inputs(pair.config, dtype, seed=7)

    ours = outputs_of_modules(pair.ours, lambda: ours_forward(pair.ours, inputs))
    theirs = outputs_of_modules(pair.theirs, lambda: theirs_forward(pair.theirs, inputs))

    blocks = pair.config.depth + pair.config.depth_single_blocks
    assert sum("blocks." in name for name in ours) == blocks
    for name, outputs in theirs.items():
        for stream, (our_output, their_output) in enumerate(zip(ours[name], outputs, strict=True)):
            assert_close(our_output, rows_of(their_output, our_output), f"{name}, stream {stream}")


def test_one_block_gives_the_same_from_the_same_inputs(pair: Pair, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    hidden = pair.config.hidden_size
    img, txt, vec = (
        torch.randn(2, *shape, generator=generator).to(dtype) for shape in ((35, hidden), (11, hidden), (hidden,))
    )
    ids = torch.cat((torch.zeros(1, 11, 3), sampling.position_ids(1, 5, 7)), dim=1)
    our_pe = attention.rotary_table(ids, pair.config.axes_dim, pair.config.theta)
    their_pe = pair.theirs.pe_embedder(ids)

    with torch.inference_mode():
        for ours, theirs in zip(pair.ours.double_blocks, pair.theirs.double_blocks, strict=True):
            our_streams = ours(img, txt, ours.modulation_outs(vec), our_pe)
            their_streams = theirs(img, txt, vec, their_pe)
            assert_close(our_streams[0], their_streams[0], "image after a double block")
            assert_close(our_streams[1], their_streams[1], "text after a double block")
        for ours, theirs in zip(pair.ours.single_blocks, pair.theirs.single_blocks, strict=True):
            our_stream = ours(img, ours.modulation_outs(vec), our_pe[:, 11:])
            their_stream = theirs(img, vec, their_pe[:, :, 11:])
            assert_close(our_stream, their_stream, "single block")
            some = ours(img, ours.modulation_outs(vec), our_pe[:, 11:], rows=(3, 20))
            assert_close(some, their_stream[:, 3:20], "some rows of a single block")


def test_rotary_table_holds_the_same_rotations(official: OfficialCode) -> None:
    ids = torch.cat([sampling.position_ids(index, 97, 60) for index in range(4)], dim=1)

    ours = attention.rotary_table(ids, (16, 56, 56), 10_000).transpose(1, 2)  # there heads come before tokens
    theirs = official.layers.EmbedND(128, 10_000, [16, 56, 56])(ids)

    assert torch.equal(ours[..., 0], theirs[..., 0, 0])  # cosines
    assert torch.equal(ours[..., 1], theirs[..., 1, 0])  # sines


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_of_positioned_tokens_is_the_same(official: OfficialCode, dtype: torch.dtype, heads: int) -> None:
    q, k, v = torch.randn(3, 2, heads, 45, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    ids = sampling.position_ids(1, 5, 9)
    our_pe = attention.rotary_table(ids, (16, 56, 56), 10_000)
    their_pe = official.layers.EmbedND(128, 10_000, [16, 56, 56])(ids)

    by_tokens = (x.transpose(1, 2) for x in (q, k, v))
    assert_close(attention.attention(*by_tokens, our_pe), official.math.attention(q, k, v, their_pe))


def test_timestep_embedding_is_the_same_with_its_roundings(official: OfficialCode, dtype: torch.dtype) -> None:
    times = torch.cat((torch.linspace(0, 1, 401), torch.tensor([2.5, 3.0, 4.0, 30.0]))).to(dtype)

    assert torch.equal(layers.timestep_embedding(times), official.layers.timestep_embedding(times, 256))


def bundled_pair(official: OfficialCode, dtype: torch.dtype) -> Pair:
    files = find_model(None)
    config = files.config.transformer
    ours, theirs = build_pair(official, config)
    for network in (ours, theirs):
        load_weights(network, [files.transformer], dtype)
    return Pair(ours, theirs, config)


def random_pair(official: OfficialCode, dtype: torch.dtype, seed: int) -> Pair:
    config = random_transformer_config(seed)
    ours, theirs = build_pair(official, config)
    weights = {name: weight.to(dtype) for name, weight in random_weights(ours, seed).items()}
    for network in (ours, theirs):
        network.load_state_dict(weights, assign=True)
    return Pair(ours, theirs, config)


def build_pair(official: OfficialCode, config: TransformerConfig) -> tuple[Transformer, Any]:
    parameters = official.model.FluxParams(**asdict(config))
    return build_on_meta(lambda: Transformer(config)), build_on_meta(lambda: official.model.Flux(parameters))


def random_inputs(config: TransformerConfig, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """A target and up to three references of any shape, a text of any length, one or two edits at once."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, text = choose.randint(1, 2), choose.randint(4, 80)
    images = [(choose.randint(1, 12), choose.randint(1, 12)) for _ in range(choose.randint(2, 4))]
    ids = torch.cat([sampling.position_ids(index, *grid) for index, grid in enumerate(images)], dim=1)
    return {
        "img": torch.randn(batch, ids.shape[1], config.in_channels, generator=generator).to(dtype),
        "img_ids": ids.expand(batch, -1, -1),
        "txt": torch.randn(batch, text, config.context_in_dim, generator=generator).to(dtype),
        "txt_ids": torch.zeros(batch, text, 3),
        "y": torch.randn(batch, config.vec_in_dim, generator=generator).to(dtype),
        "timesteps": torch.rand(batch, generator=generator).to(dtype),
        "guidance": torch.full((batch,), choose.choice((1.0, 2.5, 4.0)), dtype=dtype),
    }


@torch.inference_mode()
def ours_forward(network: Transformer, inputs: dict[str, Tensor]) -> Tensor:
    conditioning = network.condition(
        inputs["txt"], inputs["y"], inputs["guidance"], inputs["timesteps"][None], inputs["img_ids"]
    )
    return network(inputs["img"], 0, conditioning)  # type: ignore[no-any-return]


@torch.inference_mode()
def theirs_forward(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    return network(**inputs)  # type: ignore[no-any-return]


def outputs_of_modules(network: nn.Module, forward: Callable[[], object]) -> dict[str, tuple[Tensor, ...]]:
    """What the embedders, the blocks and the last layer gave, by name."""
    outputs: dict[str, tuple[Tensor, ...]] = {}
    names = {name: module for name, module in network.named_modules() if is_seam(name)}

    def keep(name: str) -> Callable[[nn.Module, object, Any], None]:
        return lambda module, given, output: outputs.update({name: output if isinstance(output, tuple) else (output,)})

    hooks = [module.register_forward_hook(keep(name)) for name, module in names.items()]
    forward()
    for hook in hooks:
        hook.remove()
    return outputs


def rows_of(theirs: Tensor, ours: Tensor) -> Tensor:
    """Theirs as ours computes it: time for all steps at once, here one, and of the last block the image rows alone."""
    return theirs[None] if theirs.dim() < ours.dim() else theirs[:, -ours.shape[1] :]


def is_seam(name: str) -> bool:
    return re.fullmatch(r"(double|single)_blocks\.\d+|\w+_in|final_layer", name) is not None
