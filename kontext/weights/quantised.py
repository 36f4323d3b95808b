"""Quantised weights of other people's files, joined with their scales.

ComfyUI writes float8 weights in two ways: `X.scale_weight` beside `X.weight` and one mark `scaled_fp8` in the file, or
`X.weight_scale` with a note `X.comfy_quant`; others write `weight_scale` alone. Scales of inputs are for products in
float8 with a fixed scale, which this engine does not do: it measures every token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from kontext.errors import CheckpointError
from kontext.weights.stored import FLOAT8_DTYPES, Packed, ScaledRows, Weight

SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")
MARKS = ("scaled_fp8",)
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")

# Formats that pack several values into a byte; their keys, and what to say of them.
OTHER_FORMATS = {
    ".qweight": "SVDQuant or GPTQ",
    ".wscales": "SVDQuant (nunchaku)",
    ".absmax": "bitsandbytes NF4",
    ".quant_map": "bitsandbytes NF4",
    ".SCB": "bitsandbytes int8",
    ".weight_scale_2": "NVFP4",
    ".block_scale": "MXFP or NVFP4",
}


def join_scales(tensors: Mapping[str, Weight]) -> dict[str, Weight]:
    """Join float8 weights with their scales and leave out what only other engines use.

    Raises:
        CheckpointError: a scale has no weight or does not fit it, or the weights are in a format that is not read.
    """
    _refuse_other_formats(tensors)
    joined = {name: tensor for name, tensor in tensors.items() if not _is_beside_weights(name)}
    for name, scale in tensors.items():
        if name.endswith(SCALES):
            weight = f"{name.rpartition('.')[0]}.weight"
            joined[weight] = _scaled(weight, joined.get(weight), scale)
    return joined


def _is_beside_weights(name: str) -> bool:
    return name.endswith((*SCALES, *UNUSED)) or name.rpartition(".")[2] in MARKS


def _scaled(name: str, weight: Weight | None, scale: Weight) -> Weight:
    if not isinstance(weight, Tensor) or not isinstance(scale, Tensor):
        raise CheckpointError(f"{name} is missing, but its scale is there; fetch the file again")
    if weight.dtype not in FLOAT8_DTYPES:
        raise CheckpointError(f"{name} is {weight.dtype} and has a scale; only float8 weights are read with scales")
    if weight.dim() != 2 or scale.numel() not in (1, len(weight)) or not scale.dtype.is_floating_point:
        raise CheckpointError(
            f"{name} of shape {tuple(weight.shape)} has a scale of shape {tuple(scale.shape)} in {scale.dtype}; "
            "one for the weight or one for each row is read: fetch the bfloat16 file, or one in fp8_scaled"
        )
    return Packed(weight.shape, (ScaledRows(weight, scale.float().reshape(-1, 1)),))


def _refuse_other_formats(tensors: Mapping[str, Weight]) -> None:
    remedy = "fetch the bfloat16 file, one in fp8, or a GGUF"
    for name, tensor in tensors.items():
        for suffix, format_name in OTHER_FORMATS.items():
            if name.endswith(suffix):
                raise CheckpointError(f"the weights are in {format_name} ({name}), which is not read; {remedy}")
        if name.endswith(".comfy_quant") and isinstance(tensor, Tensor):
            format_name = _comfy_format(tensor)
            if format_name not in COMFY_FORMATS:
                raise CheckpointError(f"the weights are in {format_name} ({name}), which is not read; {remedy}")


def _comfy_format(note: Tensor) -> str:
    """The format that a note of ComfyUI names: JSON in bytes."""
    try:
        content = json.loads(bytes(note.to(torch.uint8).flatten()[:4096].tolist()))
        return str(content["format"])[:40]
    except (ValueError, TypeError, KeyError):
        return "an unknown format"
