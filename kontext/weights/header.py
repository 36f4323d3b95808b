"""The header of a safetensors file, read as what a stranger wrote, before anything is mapped.

Form: 8 bytes with the length of the header, the header in JSON ({name: {dtype, shape, data_offsets}}), then the tensors
one after the other, without holes and without overlaps. Source: the format's description in safetensors' README.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kontext.errors import CheckpointError
from kontext.weights.naming import name_what_it_is

LARGEST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library too; the 12B model's header has 0.1 MB

BITS = {
    name: bits
    for bits, names in {
        4: "F4",
        6: "F6_E2M3 F6_E3M2",
        8: "BOOL U8 I8 F8_E4M3 F8_E5M2 F8_E8M0",
        16: "I16 U16 F16 BF16",
        32: "I32 U32 F32",
        64: "I64 U64 F64 C64",
    }.items()
    for name in names.split()
}
"""Bits of a value, by the format's name of its dtype."""


@dataclass(frozen=True)
class Entry:
    """A tensor of a file, as its header describes it."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def __post_init__(self) -> None:
        numbers = (*self.shape, self.begin, self.end)
        if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
            raise ValueError("a size is not a whole number")
        if self.end - self.begin != math.prod(self.shape) * BITS[self.dtype] / 8:
            raise ValueError("the offsets do not fit the shape")


@dataclass(frozen=True)
class Header:
    """What a file says of itself: its tensors in the order of the file, and its notes."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file, and the file's size against it.

    Raises:
        CheckpointError: it is something else, damaged, cut short, or cannot be read; the message says what to do.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            # The length is a stranger's word: not read when the file cannot hold it.
            raw = file.read(length) if length <= min(LARGEST_HEADER_BYTES, size - 8) else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{path} {name_what_it_is(path, size)}")
    try:
        header = _parse(raw)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"unknown dtype {error}" if isinstance(error, KeyError) else _one_line(error)
        raise CheckpointError(f"{path} is damaged ({reason}) or no safetensors file; fetch it again") from None
    _check_size(path, size, 8 + length + max((entry.end for entry in header.tensors.values()), default=0))
    return header


def _parse(raw: bytes) -> Header:
    content: dict[str, Any] = json.loads(raw, object_pairs_hook=_without_repeats)
    metadata = content.pop("__metadata__", {})
    entries = {
        name: Entry(entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"]) for name, entry in content.items()
    }
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 0
    for name, entry in tensors.items():
        if entry.begin != end:
            raise ValueError(f"{name[:80]!r} overlaps another tensor, or there is a hole before it")
        end = entry.end
    return Header(tensors, {str(name): str(value) for name, value in metadata.items()})


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name stands there twice")
    return content


def _check_size(path: Path, size: int, expected: int) -> None:
    if size < expected:
        raise CheckpointError(
            f"{path} has {size} bytes where its header says {expected}: the download stopped at "
            f"{100 * size // expected} %; fetch it again"
        )
    if size > expected:
        raise CheckpointError(f"{path} has {size} bytes where its header says {expected}; fetch it again")


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
