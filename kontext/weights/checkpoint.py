"""Checkpoints: weights of files loaded into networks, all of them or none.

Networks are built on the meta device, which takes no memory. The tensors of the files are then assigned. Missing keys,
unknown keys, other shapes and truncated files are reported together as one error.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kontext.errors import CheckpointError
from kontext.weights.layout import EncoderFiles, ModelFiles
from kontext.weights.reading import Convert, convert_now

LOADABLE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SAMPLES_PER_FILE, BYTES_PER_SAMPLE = 64, 65_536  # 4 MiB of samples identify a file; a smaller file is read whole

Network = TypeVar("Network", bound=nn.Module)
Rename = Callable[[str], str | None]  # from a file's key to the network's; None skips the tensor


def build_on_meta(build: Callable[[], Network]) -> Network:
    """Build a network without memory for its weights, ready for `load_weights`."""
    with torch.device("meta"):
        return build().eval().requires_grad_(False)


def load_weights(
    network: nn.Module,
    paths: Sequence[Path],
    dtype: torch.dtype,
    rename: Rename = lambda key: key,
    convert: Convert = convert_now,
) -> None:
    """Load the weights of one or several files into a network, mapped into host memory.

    Args:
        network: network from `build_on_meta`.
        paths: safetensors files (or pickles of plain tensors) that together hold every weight.
        dtype: dtype of the loaded weights.
        rename: from a file's key to the network's.
        convert: conversion to the dtype, at once or when the weights are read.
    Raises:
        CheckpointError: a file is truncated or unreadable, or the weights do not fit the network.
    """
    tensors = {name: tensor for path in paths for key, tensor in _read(path).items() if (name := rename(key))}
    _check_fit(network, tensors, paths)
    network.load_state_dict({name: convert(tensor, dtype) for name, tensor in tensors.items()}, assign=True)
    network.requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _read_pickle(path)
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a pickle, the format of T5's original repository; only tensors are unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is cut short or no file of weights: {_first_line(error)}") from error


def read_header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file and check the file's size against it.

    Raises:
        CheckpointError: the header is unreadable, or the file has another size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= size else b""
    try:
        header: dict[str, Any] = json.loads(raw)
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        expected = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{path} ({size} bytes) is cut short or no safetensors file; fetch it again") from None
    if size != expected:
        raise CheckpointError(f"{path} has {size} bytes where its header says {expected}; fetch it again")
    return header


def _check_fit(network: nn.Module, tensors: Mapping[str, Tensor], paths: Sequence[Path]) -> None:
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
    if kinds := {str(tensor.dtype) for tensor in tensors.values() if tensor.dtype not in LOADABLE_DTYPES}:
        complaints.append(f"weights are {_some(kinds)}, expected bfloat16, float16 or float32")
    if complaints:
        raise CheckpointError(
            f"{_place(paths)} does not fit the {type(network).__name__}: {'; '.join(complaints)}; "
            "put the weights of this model there, or a config.json with their sizes beside them"
        )


def _some(names: Iterable[str], limit: int = 3) -> str:
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (", ..." if len(listed) > limit else "")


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _place(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} shards)"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def fingerprint(files: ModelFiles) -> str:
    """Fingerprint of a model's weights and vocabularies: "sha256:..." of sizes and samples spread over every file.

    At most 4 MiB of a file are read, so 34 GB take little longer than the tiny model.
    """
    digest = hashlib.sha256()
    for path in (files.transformer, files.autoencoder, *_encoder_paths(files.t5), *_encoder_paths(files.clip)):
        _digest_file(digest, path)
    return f"sha256:{digest.hexdigest()}"


def _encoder_paths(encoder: EncoderFiles) -> list[Path]:
    """Files of weights and vocabulary; the encoder's other files do not enter the fingerprint."""
    names = ("tokenizer.json", "spiece.model", "vocab.json", "merges.txt")
    vocabulary = [encoder.tokenizer / name for name in names if (encoder.tokenizer / name).is_file()]
    return [*encoder.weights, *vocabulary]


def _digest_file(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with path.open("rb") as file:
        # The first sample holds the start of the header, the last one ends with the file.
        last = max(size - BYTES_PER_SAMPLE, 0)
        for sample in range(SAMPLES_PER_FILE):
            file.seek(last * sample // (SAMPLES_PER_FILE - 1))
            digest.update(file.read(BYTES_PER_SAMPLE))
