"""Stages and pieces of the model, and the memory of an edit without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kontext.attention import rotary_table
from kontext.attention_kernels import using_backend
from kontext.banded import banded_bytes, has_compiled_norms, whole_bytes
from kontext.config import PIXELS_PER_TOKEN, ModelConfig
from kontext.layers import ModulationOut
from kontext.matmul import using_products
from kontext.offload.needs import Working, Workload
from kontext.offload.pieces import Piece, Stage
from kontext.text import TextEncoder
from kontext.transformer import Transformer

if TYPE_CHECKING:
    from kontext.pipeline import Kontext

# Peak of a block without fusion, in activations of the hidden size: the residual stream, its norm, both wide layers of
# a single block (7 + 5), the MLP's activation (4), and queries and keys in float32 during the rotation.
PEAK_ACTIVATIONS_OF_BLOCK = 24
BLOCKS_FOR_BANDS = 25  # of a double block's time: what bands take longer, as they are not compiled; an estimate


def native_workload(model: Kontext) -> Workload:
    """The workload of our own networks."""
    networks = model.networks
    return Workload(
        networks=tuple(networks),
        stages=[
            *text_stages(networks.t5, networks.clip),
            *autoencoder_stages(networks.autoencoder),
            transformer_stage(networks.transformer),
        ],
        working=working(
            model.config, model.max_sequence_length, model.dtype.itemsize, has_compiled_norms(networks.autoencoder)
        ),
        prepare_block=partial(_prepare_block, model),
    )


def _prepare_block(model: Kontext) -> Callable[[], object]:
    with torch.inference_mode():
        inputs = block_inputs(model.config, model.max_sequence_length, model.memory.device, model.dtype)

    @torch.inference_mode()
    def run() -> object:
        with using_backend(model.attention), using_products(model.products):
            return model.networks.transformer.double_blocks[0](*inputs)

    return run


def text_stages(t5: TextEncoder, clip: TextEncoder) -> list[Stage]:
    """Stages of the text encoders: T5 layer by layer; CLIP, half the size of a T5 layer, as a whole."""
    network = t5.network
    layers = [Piece(f"t5.{i}", layer) for i, layer in enumerate(_blocks(network, "encoder.block"))]
    return [
        Stage(clip, once=[Piece("clip", clip.network)]),
        Stage(t5, once=[Piece("t5.embedding", network.get_submodule("shared")), *layers]),
    ]


def autoencoder_stages(autoencoder: nn.Module) -> list[Stage]:
    """Stages of the autoencoder: encoder and decoder, each as a whole."""
    return [
        Stage(half, once=[Piece(f"autoencoder.{name}", half)])
        for name, half in autoencoder.named_children()
        if name in ("encoder", "decoder")
    ]


def transformer_stage(transformer: Transformer) -> Stage:
    """Stage of the transformer: modulation of all blocks once, then the blocks without modulation in the loop."""
    once, loop = [], []
    for i, block in enumerate(_blocks(transformer, "double_blocks")):
        modulations = (block.img_mod, block.txt_mod)
        once += [Piece(f"double.{i}.{stream}", part) for stream, part in zip(("img", "txt"), modulations, strict=True)]
        loop.append(Piece(f"double.{i}", block, without=modulations))
    for i, block in enumerate(_blocks(transformer, "single_blocks")):
        once.append(Piece(f"single.{i}.modulation", block.modulation))
        loop.append(Piece(f"single.{i}", block, without=[block.modulation]))
    return Stage(transformer, once, loop)


def whole_blocks_stage(transformer: nn.Module) -> Stage:
    """Stage of a transformer that computes modulation at every step: blocks with their modulation."""
    kinds = ("double_blocks", "single_blocks")
    return Stage(
        transformer,
        loop=[Piece(f"{kind}.{i}", block) for kind in kinds for i, block in enumerate(_blocks(transformer, kind))],
    )


def working(config: ModelConfig, text_tokens: int, element_bytes: int, is_compiled: bool) -> Sequence[Working]:
    """Memory without weights of an edit of one image in the largest preferred resolution.

    The autoencoder takes the image as a whole or, with less memory, in bands.
    """
    activation = usual_tokens(config, text_tokens) * config.transformer.hidden_size * element_bytes
    loop = PEAK_ACTIVATIONS_OF_BLOCK * activation
    pixels = max(width * height for width, height in config.preferred_resolutions)
    sizes = config.autoencoder, pixels, is_compiled
    whole = Working(max(loop, whole_bytes(*sizes)))
    in_bands = Working(max(loop, banded_bytes(*sizes)), extra_blocks=BLOCKS_FOR_BANDS)
    return [whole, in_bands] if in_bands.nbytes < whole.nbytes else [whole]


def usual_tokens(config: ModelConfig, text_tokens: int) -> int:
    """Number of tokens of text, target and one reference image in the largest preferred resolution."""
    return (
        text_tokens + 2 * max(width * height for width, height in config.preferred_resolutions) // PIXELS_PER_TOKEN**2
    )


def block_inputs(
    config: ModelConfig, text_tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Sequence[ModulationOut], Tensor]:
    """Inputs of a double block in the usual edit, for measuring its time.

    The memory layout is that of `Transformer.condition`; otherwise a compiled block would compile again for an edit.
    """
    sizes, tokens = config.transformer, usual_tokens(config, text_tokens)
    img, txt = (
        torch.randn(1, length, sizes.hidden_size, device=device).to(dtype)
        for length in (tokens - text_tokens, text_tokens)
    )

    def zeros() -> Tensor:
        return torch.zeros(1, 1, sizes.hidden_size, device=device, dtype=dtype)

    return (
        img,
        txt,
        [ModulationOut(zeros(), zeros(), zeros()) for _ in range(4)],
        rotary_table(torch.zeros(1, tokens, 3, device=device), sizes.axes_dim, sizes.theta),
    )


def _blocks(network: nn.Module, path: str) -> Iterable[Any]:
    """Modules of the ModuleList at a path."""
    blocks = network.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    return blocks
