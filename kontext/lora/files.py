"""LoRA files: read, checked against a transformer, and given as low-rank products with their scale in them.

A layer's addition is up @ down * alpha / rank, alpha being the rank where the file names none. Source: Hu et al. 2021,
"LoRA"; alpha as kohya writes it beside each layer, and diffusers in the notes of the file.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kontext.errors import CheckpointError, LoraError
from kontext.lora.keys import Target, split_key, targets
from kontext.weights.header import read_header

Shapes = Mapping[str, tuple[int, int]]  # (rows, columns) of the transformer's linear layers, by name
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LowRank:
    """Addition to some rows of a linear layer: `up @ down * factor`.

    Args:
        down: shape (rank, columns of the layer).
        up: shape (rows, rank).
        first: first of those rows in the layer.
    """

    down: Tensor
    up: Tensor
    factor: float
    first: int = 0

    @property
    def rank(self) -> int:
        return len(self.down)


def read_lora(path: Path, shapes: Shapes, name: str = "") -> dict[str, list[LowRank]]:
    """Read a LoRA file for a transformer whose linear layers have these shapes; its tensors stay mapped.

    Args:
        name: of the file in messages, if it is not its own.
    Returns:
        Additions by the name of their layer.
    Raises:
        LoraError: the file is none, is damaged, has parts that are not applied, or belongs to another model.
    """
    shown = name or path.name
    try:
        if path.suffix not in (".safetensors", ".sft"):
            raise LoraError("is not read: only safetensors are, since a pickle can run code")
        return _additions(_mapped(path), read_header(path).metadata, shapes)
    except LoraError as error:
        raise LoraError(f"LoRA {shown} {error}") from error
    except CheckpointError as error:
        raise LoraError(f"LoRA {shown} {str(error).removeprefix(f'{path} ')}") from error


def _mapped(path: Path) -> dict[str, Tensor]:
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise LoraError(f"cannot be read: {error}") from error


def _additions(tensors: dict[str, Tensor], notes: dict[str, str], shapes: Shapes) -> dict[str, list[LowRank]]:
    named = targets(shapes)
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        name, _, role = split_key(key, named)
        found[name][role] = tensor
    if not found:
        raise LoraError("holds no layers")
    alphas = _alphas_of(notes)
    additions: dict[str, list[LowRank]] = defaultdict(list)
    for name, tensors_of_layer in found.items():
        target = named[name]
        additions[target.module].append(_low_rank(name, target, tensors_of_layer, alphas, shapes[target.module]))
    return dict(additions)


def _low_rank(
    name: str, target: Target, tensors: dict[str, Tensor], notes: dict[str, Any], shape: tuple[int, int]
) -> LowRank:
    if not {"down", "up"} <= tensors.keys():
        raise LoraError(f"lacks a half of the layer {name}; fetch it again")
    down, up = tensors["down"].flatten(1), tensors["up"].flatten(1)
    first, last = _rows(target, shape)
    if down.shape[1] != shape[1] or up.shape[0] != last - first or up.shape[1] != down.shape[0] or not down.shape[0]:
        raise LoraError(
            f"does not fit: layer {name} is {last - first}x{shape[1]} here and {up.shape[0]}x{down.shape[1]} "
            f"there (rank {down.shape[0]}); it was made for another model"
        )
    if down.dtype not in FLOATS or up.dtype not in FLOATS:
        raise LoraError(f"is in {down.dtype}; expected bfloat16, float16 or float32")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise LoraError(f"has values that are not numbers, in the layer {name}")
    if target.swaps_halves and target.parts == 1:
        up = torch.cat(up.chunk(2)[::-1])
    return LowRank(down, up, _factor(name, tensors.get("alpha"), notes, down.shape[0]), first)


def _rows(target: Target, shape: tuple[int, int]) -> tuple[int, int]:
    """Rows of a layer that a part of it has: q, k and v have as many as the layer has columns, the MLP the others."""
    rows, columns = shape
    if target.parts == 1:
        return 0, rows
    return target.part * columns, rows if target.part == target.parts - 1 else (target.part + 1) * columns


def _factor(name: str, alpha: Tensor | None, notes: dict[str, Any], rank: int) -> float:
    if alpha is not None:
        if alpha.numel() != 1 or not math.isfinite(float(alpha)):
            raise LoraError(f"has an alpha that is no number, in the layer {name}")
        return float(alpha) / rank
    # A pattern names the end of a name in whole parts, so that transformer_blocks is not single_transformer_blocks.
    endings = [ending for ending in notes["alpha_pattern"] if f".{name}".endswith(f".{ending}")]
    value = notes["alpha_pattern"][max(endings, key=len)] if endings else notes["alpha"]
    if value is None:
        return 1.0
    return float(value) / (math.sqrt(rank) if notes["use_rslora"] else rank)


def _alphas_of(notes: dict[str, str]) -> dict[str, Any]:
    """alpha, alpha_pattern and use_rslora as diffusers notes them in a file; None, none and False where it does not."""
    try:
        content = json.loads(notes.get("lora_adapter_metadata", "{}"))
        alpha = content.get("transformer.lora_alpha")
        pattern = dict(content.get("transformer.alpha_pattern") or {})
        return {
            "alpha": None if alpha is None else _finite(alpha),
            "alpha_pattern": {ending: _finite(value) for ending, value in pattern.items()},
            "use_rslora": bool(content.get("transformer.use_rslora", False)),
        }
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise LoraError(f"has notes that cannot be read (lora_adapter_metadata: {error})") from error


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"alpha {value} is no finite number")
    return number
