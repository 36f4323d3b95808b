"""Weights as their files hold them: plain tensors, or quantised and divided ones that become numbers when read.

Tensors are mapped, and the reader's threads call `write` for a few rows at a time, so that no weight is in host memory
as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)


class Rows(Protocol):
    """Consecutive rows of a weight; a row of a vector is one number."""

    @property
    def nbytes(self) -> int:
        """Size in the file."""

    @property
    def form(self) -> str:
        """Name of the number format, for results: "" for one that loses nothing against bfloat16."""

    def __len__(self) -> int: ...

    def data_ptr(self) -> int:
        """Address, in the order of the file."""

    def between(self, first: int, last: int) -> Rows:
        """Rows first to last (exclusive)."""

    def write(self, out: Tensor) -> None:
        """Write the numbers to a tensor of any float dtype, with one entry per row."""


@dataclass(frozen=True)
class PlainRows:
    """Rows of a tensor in a dtype of torch."""

    tensor: Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def form(self) -> str:
        return form_of(self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def between(self, first: int, last: int) -> PlainRows:
        return PlainRows(self.tensor[first:last])

    def write(self, out: Tensor) -> None:
        out.copy_(self.tensor)


@dataclass(frozen=True)
class ScaledRows:
    """Rows of a tensor in float8, to be multiplied with a scale.

    Args:
        tensor: shape (rows, channels).
        scale: float32, of shape (1, 1) for all rows or (rows, 1) for each.
    """

    tensor: Tensor
    scale: Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    @property
    def form(self) -> str:
        return form_of(self.tensor)

    def __len__(self) -> int:
        return len(self.tensor)

    def data_ptr(self) -> int:
        return self.tensor.data_ptr()

    def between(self, first: int, last: int) -> ScaledRows:
        return ScaledRows(self.tensor[first:last], self.scale[first:last] if len(self.scale) > 1 else self.scale)

    def write(self, out: Tensor) -> None:
        # In float32, so that only the result is rounded.
        out.copy_(self.tensor.float().mul_(self.scale))


@dataclass(frozen=True)
class Packed:
    """A weight that is not one plain tensor of its file.

    Args:
        shape: of the weight.
        rows: parts, one below the other.
    """

    shape: torch.Size
    rows: tuple[Rows, ...]

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows)

    @property
    def form(self) -> str:
        return next((rows.form for rows in self.rows if rows.form), "")

    def data_ptr(self) -> int:
        return self.rows[0].data_ptr()

    def write(self, out: Tensor) -> None:
        """Write the weight to a tensor of its shape."""
        for part, rows in self.pieces(out, len(out)):
            rows.write(part)

    def pieces(self, out: Tensor, most_rows: int) -> Iterator[tuple[Tensor, Rows]]:
        """Parts of `out` of at most so many rows, and the rows that belong there."""
        begin = 0
        for rows in self.rows:
            for part in split(rows, most_rows):
                yield out[begin : begin + len(part)], part
                begin += len(part)


Weight = Tensor | Packed


def rows_of(weight: Weight) -> tuple[Rows, ...]:
    """The rows of a weight, as parts of a larger one."""
    return weight.rows if isinstance(weight, Packed) else (PlainRows(weight),)


def split(rows: Rows, most_rows: int) -> Iterator[Rows]:
    """The rows in parts of at most so many."""
    for first in range(0, len(rows), most_rows):
        yield rows.between(first, min(first + most_rows, len(rows)))


def join(weights: Sequence[Weight]) -> Packed:
    """Lay weights of equal width below each other, as one weight."""
    rows = tuple(part for weight in weights for part in rows_of(weight))
    return Packed(torch.Size((sum(map(len, rows)), *weights[0].shape[1:])), rows)


def form_of(weight: Weight) -> str:
    """Name of the number format for results, "" for one that loses nothing against bfloat16."""
    if isinstance(weight, Packed):
        return weight.form
    return "fp8" if weight.dtype in FLOAT8_DTYPES else ""
