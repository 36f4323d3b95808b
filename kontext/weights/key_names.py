"""Names of weights in other people's files, brought to those of the published checkpoint, which the networks carry.

A whole model in one file has its parts under a prefix each; many files of one part keep that prefix. diffusers names
layers differently and keeps q, k and v apart, which the checkpoint joins in one layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from kontext.errors import CheckpointError
from kontext.weights.stored import Packed, Weight, join, rows_of

Weights = Mapping[str, Weight]
Arrange = Callable[[Weights], dict[str, Weight]]  # from a file's weights to those of one network, by its names

PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model.", "transformer.", "model."),
    "autoencoder": ("vae.", "first_stage_model."),
    "t5": ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.", "t5xxl.transformer."),
    "clip": ("text_encoders.clip_l.transformer.", "text_encoders.clip_l.", "clip_l.transformer."),
}
"""Of the parts of a model in one file; longer ones before what they begin with."""

STREAMS = {
    "img": {
        "mod.lin": ("norm1.linear",),
        "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "attn.norm.query_norm": ("attn.norm_q",),
        "attn.norm.key_norm": ("attn.norm_k",),
        "attn.proj": ("attn.to_out.0",),
        "mlp.0": ("ff.net.0.proj",),
        "mlp.2": ("ff.net.2",),
    },
    "txt": {
        "mod.lin": ("norm1_context.linear",),
        "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "attn.norm.query_norm": ("attn.norm_added_q",),
        "attn.norm.key_norm": ("attn.norm_added_k",),
        "attn.proj": ("attn.to_add_out",),
        "mlp.0": ("ff_context.net.0.proj",),
        "mlp.2": ("ff_context.net.2",),
    },
}
SINGLE = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
    "linear2": ("proj_out",),
}
OUTSIDE_BLOCKS = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{ours}.{layer}": f"time_text_embed.{theirs}.linear_{number}"
        for ours, theirs in (
            ("time_in", "timestep_embedder"),
            ("guidance_in", "guidance_embedder"),
            ("vector_in", "text_embedder"),
        )
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
SCALE_THEN_SHIFT = "final_layer.adaLN_modulation.1"  # ours shifts first, diffusers' scales first


def diffusers_modules(module: str) -> tuple[str, ...]:
    """diffusers' names of one of the transformer's modules; several where the checkpoint joins layers.

    Raises:
        KeyError: the transformer has no such module.
    """
    match module.split("."):
        case ["double_blocks", index, first, *rest]:
            stream, _, begin = first.partition("_")
            return tuple(f"transformer_blocks.{index}.{name}" for name in STREAMS[stream][".".join((begin, *rest))])
        case ["single_blocks", index, *rest]:
            return tuple(f"single_transformer_blocks.{index}.{name}" for name in SINGLE[".".join(rest)])
        case _:
            return (OUTSIDE_BLOCKS[module],)


def part_of(weights: Weights, part: str) -> dict[str, Weight]:
    """The weights of one part of a model without their prefix; all of them where no key has one of its prefixes."""
    for prefix in PREFIXES[part]:
        found = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(weights)


def transformer_names(weights: Weights) -> dict[str, Weight]:
    """Bring the transformer's weights to the checkpoint's names, from whatever naming they have."""
    found = part_of(weights, "transformer")
    if not any(name.startswith(("transformer_blocks.", "single_transformer_blocks.")) for name in found):
        return found
    return _from_diffusers(found)


def _from_diffusers(theirs: dict[str, Weight]) -> dict[str, Weight]:
    ours: dict[str, Weight] = {}
    for module in _modules_named_in(theirs):
        names = diffusers_modules(module)
        for kind in ("weight", "bias"):
            parts = [theirs.pop(key) for name in names if (key := f"{name}.{kind}") in theirs]
            if len(parts) == len(names):
                key = f"{module}.{'scale' if module.endswith('_norm') else kind}"
                joined = parts[0] if len(parts) == 1 else join(parts)
                ours[key] = _halves_swapped(key, joined) if module == SCALE_THEN_SHIFT else joined
    return ours | theirs  # what is left has no place: reported as unknown


def _modules_named_in(theirs: Weights) -> list[str]:
    """Names in the checkpoint of all modules of a transformer with as many blocks as diffusers' weights have."""
    depth, depth_single = (
        1 + max((int(found[1]) for name in theirs if (found := re.match(rf"{kind}\.(\d{{1,4}})\.", name))), default=-1)
        for kind in ("transformer_blocks", "single_transformer_blocks")
    )
    streams = [f"{stream}_{name}" for stream, names in STREAMS.items() for name in names]
    return [
        *OUTSIDE_BLOCKS,
        *(f"double_blocks.{index}.{name}" for index in range(depth) for name in streams),
        *(f"single_blocks.{index}.{name}" for index in range(depth_single) for name in SINGLE),
    ]


def _halves_swapped(key: str, weight: Weight) -> Weight:
    (rows,) = rows_of(weight)
    half = len(rows) // 2
    if 2 * half != len(rows):
        raise CheckpointError(f"{key} has {len(rows)} rows, expected an even number")
    return Packed(weight.shape, (rows.between(half, len(rows)), rows.between(0, half)))


LEVEL = {
    "resnets": "block",
    "conv_shortcut": "nin_shortcut",
    "downsamplers": "downsample",
    "upsamplers": "upsample",
}
IMAGE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def autoencoder_names(weights: Weights) -> dict[str, Weight]:
    """Bring the autoencoder's weights to the checkpoint's names, from whatever naming they have."""
    found = part_of(weights, "autoencoder")
    if not any(".mid_block." in name for name in found):
        return found
    levels = len({name.split(".")[2] for name in found if name.startswith("decoder.up_blocks.")})
    return dict(_autoencoder_entry(name, weight, levels) for name, weight in found.items())


def _autoencoder_entry(name: str, weight: Weight, levels: int) -> tuple[str, Weight]:
    """Name in the checkpoint of one of diffusers' weights, and the weight in the shape that it has there."""
    match name.split("."):
        case [half, "mid_block", "attentions", "0", *layer, kind]:
            ours = IMAGE_ATTENTION.get(".".join(layer), ".".join(layer))
            if isinstance(weight, Tensor) and weight.dim() == 2:
                weight = weight[..., None, None]  # a linear layer there is a 1x1 convolution here
            return f"{half}.mid.attn_1.{ours}.{kind}", weight
        case [half, "mid_block", "resnets", index, *rest] if index.isdecimal():
            return f"{half}.mid.block_{int(index) + 1}.{'.'.join(rest)}", weight
        case [half, ("down_blocks" | "up_blocks") as way, index, kind, number, *rest] if index.isdecimal():
            level = int(index) if way == "down_blocks" else levels - 1 - int(index)  # theirs counts from the coarsest
            place = f"{LEVEL.get(kind, kind)}.{number}" if kind == "resnets" else LEVEL.get(kind, kind)
            layers = ".".join(LEVEL.get(part, part) for part in rest)
            return f"{half}.{way.removesuffix('_blocks')}.{level}.{place}.{layers}", weight
        case _:
            return name.replace("conv_norm_out", "norm_out"), weight
