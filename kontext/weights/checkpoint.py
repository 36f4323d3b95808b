"""Checkpoints: weights of files loaded into networks, all of them or none.

Networks are built on the meta device, which takes no memory. The tensors of the files are then assigned. Missing keys,
unknown keys, other shapes and truncated files are reported together as one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from kontext.errors import CheckpointError
from kontext.weights.files import read_weights
from kontext.weights.key_names import Arrange
from kontext.weights.reading import Convert, convert_now
from kontext.weights.stored import FLOAT8_DTYPES, Weight, form_of

LOADABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *FLOAT8_DTYPES)

Network = TypeVar("Network", bound=nn.Module)


def build_on_meta(build: Callable[[], Network]) -> Network:
    """Build a network without memory for its weights, ready for `load_weights`."""
    with torch.device("meta"):
        return build().eval().requires_grad_(False)


def load_weights(
    network: nn.Module,
    paths: Sequence[Path],
    dtype: torch.dtype,
    arrange: Arrange = dict,
    convert: Convert = convert_now,
) -> tuple[str, ...]:
    """Load the weights of one or several files into a network, mapped into host memory.

    Args:
        network: network from `build_on_meta`.
        paths: files that together hold every weight; the index of shards stands for them.
        dtype: dtype of the loaded weights.
        arrange: picks a network's weights out of the files' and gives them its names.
        convert: conversion to the dtype, at once or when the weights are read.
    Returns:
        Number formats in which the files hold weights less exactly than in bfloat16, such as "fp8" and "GGUF Q4_K".
    Raises:
        CheckpointError: a file is truncated or unreadable, or the weights do not fit the network.
    """
    weights = arrange(read_weights(paths))
    _check_fit(network, weights, paths)
    network.load_state_dict({name: convert(weight, dtype) for name, weight in weights.items()}, assign=True)
    network.requires_grad_(False)
    return tuple(sorted({form for weight in weights.values() if (form := form_of(weight))}))


def _check_fit(network: nn.Module, tensors: Mapping[str, Weight], paths: Sequence[Path]) -> None:
    wanted = network.state_dict()
    complaints = []
    if missing := wanted.keys() - tensors.keys():
        complaints.append(f"missing keys: {len(missing)} ({_some(missing)})")
    if unexpected := tensors.keys() - wanted.keys():
        complaints.append(f"unknown keys: {len(unexpected)} ({_some(unexpected)})")
    if shapes := [
        f"{name} is {_shape(tensors[name])}, expected {_shape(wanted[name])}"
        for name in sorted(wanted.keys() & tensors.keys())
        if tensors[name].shape != wanted[name].shape
    ]:
        complaints.append(f"other shapes: {len(shapes)} ({_some(shapes)})")
    if kinds := {
        str(tensor.dtype)
        for tensor in tensors.values()
        if isinstance(tensor, Tensor) and tensor.dtype not in LOADABLE_DTYPES
    }:
        complaints.append(f"weights are {_some(kinds)}, expected bfloat16, float16, float32 or float8")
    if complaints:
        raise CheckpointError(
            f"{_place(paths)} does not fit the {type(network).__name__}: {'; '.join(complaints)}; "
            "put the weights of this model there, or a config.json with their sizes beside them"
        )


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")


def _shape(tensor: Weight) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _place(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} shards)"
