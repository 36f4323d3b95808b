"""Files of weights, mapped into host memory: safetensors in shards or not, and GGUF. Pickles are not opened.

One exception: T5's original repository, google/t5-v1_1-xxl, has nothing else. Its `pytorch_model.bin` is read by
torch's unpickler for plain tensors, which knows no other class and calls no function of the file's choice.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kontext.errors import CheckpointError
from kontext.weights.gguf_files import read_gguf
from kontext.weights.header import read_header
from kontext.weights.naming import NO_PICKLE, PICKLES, name_what_it_is
from kontext.weights.quantised import join_scales
from kontext.weights.stored import Weight

SAFETENSORS = (".safetensors", ".sft")


def read_weights(paths: Iterable[Path]) -> dict[str, Weight]:
    """Map the weights of files that together hold a network.

    Args:
        paths: safetensors or GGUF files; an index of shards stands for its shards.
    Raises:
        CheckpointError: a file is missing, damaged, or none that is read.
    """
    weights: dict[str, Weight] = {}
    for path in paths:
        for shard in shards_of(path):
            weights |= _read(shard)
    return join_scales(weights)


def shards_of(path: Path) -> list[Path]:
    """The files of weights that a path stands for: itself, or the shards that an index lists.

    Raises:
        CheckpointError: the index is unreadable or lists a file that is not there.
    """
    if not path.name.endswith(".index.json"):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [path.parent / Path(name).name for name in names]  # never a file elsewhere
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no index of shards ({type(error).__name__}); fetch it again") from error
    for shard in shards:
        if not shard.is_file():
            raise CheckpointError(f"{shard} is missing: put this shard, which {path.name} lists, there")
    return shards


def check_start(path: Path) -> None:
    """Check the first bytes of a file of weights, and of a safetensors file its whole header.

    Raises:
        CheckpointError: it is none that is read; the message says what it is and what to do.
    """
    if path.suffix in SAFETENSORS:
        read_header(path)
        return
    starts = b"GGUF" if path.suffix == ".gguf" else PICKLES if _is_original_t5(path) else None
    if starts is None:
        raise CheckpointError(f"{path} is not read: {NO_PICKLE}")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start.startswith(starts):
        raise CheckpointError(f"{path} {name_what_it_is(path, path.stat().st_size)}")


def _read(path: Path) -> Mapping[str, Weight]:
    check_start(path)
    if path.suffix == ".gguf":
        return read_gguf(path)
    try:
        return load_file(path) if path.suffix in SAFETENSORS else _unpickle_tensors(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _is_original_t5(path: Path) -> bool:
    return path.name.startswith("pytorch_model") and path.suffix == ".bin"


def _unpickle_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # type: ignore[no-any-return]
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is cut short or no file of weights: {reason}") from error
