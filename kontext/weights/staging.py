"""Staging: a thread's locked buffers on the way to a device, and tensors that are computed there from a weight."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from kontext.offload.copies import Copies, Mark
from kontext.weights.alignment import aligned
from kontext.weights.stored import Packed, PlainRows, Rows, Weight, rows_of, split

Source = Tensor | Packed | Rows  # that the reader's threads write from
Compute = Callable[[Tensor], Sequence[Tensor]]  # rows of a weight to as many rows of other tensors


@dataclass(eq=False)
class Derived:
    """Tensors to be computed from a weight, a few rows at a time, while it is read.

    Args:
        source: the weight as its file holds it.
        dtype: that of the rows that are computed from.
        targets: with one entry for each row of the weight.
    """

    source: Weight
    dtype: torch.dtype
    compute: Compute
    targets: list[Tensor]

    @property
    def nbytes(self) -> int:
        return self.source.nbytes

    def data_ptr(self) -> int:
        return self.source.data_ptr()

    def chunks(self, nbytes: int) -> Iterator[DerivedRows]:
        """The work in chunks of at most that many bytes in `dtype`, where rows allow it."""
        row_bytes = self.source.shape[1:].numel() * self.dtype.itemsize
        targets = [target.detach() for target in self.targets]
        first = 0
        for rows in rows_of(self.source):
            for part in split(rows, max(1, nbytes // row_bytes)):
                last = first + len(part)
                yield DerivedRows(self, part, [target[first:last] for target in targets])
                first = last


@dataclass(frozen=True)
class DerivedRows:
    """Rows of a weight, and the rows to be computed from them."""

    whole: Derived
    rows: Rows
    targets: list[Tensor]

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.whole.source.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Size of the rows in the dtype that is computed from."""
        return self.shape.numel() * self.whole.dtype.itemsize

    def compute_here(self) -> None:
        """Compute in host memory."""
        x = torch.empty(self.shape, dtype=self.whole.dtype)
        copy_rows(x, self.rows)
        for target, computed in zip(self.targets, self.whole.compute(x), strict=True):
            target.copy_(computed)


class Workbench:
    """Place on the device where tensors are computed from weights that arrive there; threads take turns.

    One for all threads: each stream would keep its own memory for what is between.
    """

    def __init__(self, copies: Copies, nbytes: int) -> None:
        self._copies = copies
        self._room = copies.device_buffer(nbytes)
        self._begin = copies.mark()  # the allocator may return memory that earlier work still uses
        self._lock = threading.Lock()

    def compute(self, staged: Tensor, compute: Compute, targets: Sequence[Tensor]) -> Mark:
        """Start to compute from rows in a host buffer; return the mark of the end."""
        room = self._room[: staged.nbytes]

        def work() -> None:
            computed = compute(room.view(staged.dtype).view(staged.shape))
            for target, values in zip(targets, computed, strict=True):
                target.copy_(values, non_blocking=True)

        with self._lock:
            self._copies.copy(room, flat(staged), after=self._begin)
            return self._copies.run(work)

    def finish(self, mark: Mark) -> None:
        self._copies.finish(mark)


class Staging:
    """Staging buffers of a thread: one is filled while the other is copied to the device."""

    def __init__(self, copies: Copies, nbytes: int) -> None:
        self._copies = copies
        # The allocator may return memory that earlier work still uses; copies wait for that work.
        self._begin = copies.mark()
        self._both = [_Buffer(copies.host_buffer(nbytes), copies) for _ in range(2)]
        for buffer in self._both:
            copies.lock(buffer.memory)
        self._buffers = cycle(self._both)

    def send(self, target: Tensor, source: Source) -> None:
        """Write a source's values to a target on the device, at some time before `finish` returns."""
        buffer = self._next()
        staged = buffer.memory[: target.nbytes]
        copy_here(staged.view(target.dtype).view(target.shape), source)
        buffer.holds(self._copies.copy(flat(target), staged, after=self._begin), self._copies)

    def compute(self, chunk: DerivedRows, bench: Workbench, to_device: bool) -> None:
        """Compute rows on the device, and write them to the device or bring them back to the host."""
        buffer = self._next()
        staged = buffer.memory[: chunk.nbytes].view(chunk.whole.dtype).view(chunk.shape)
        copy_rows(staged, chunk.rows)
        # What comes back takes the place of what went there.
        targets = chunk.targets if to_device else _laid_out(buffer.memory, chunk.targets)
        buffer.holds(bench.compute(staged, chunk.whole.compute, targets), bench)
        if not to_device:
            buffer.wait()
            for target, values in zip(chunk.targets, targets, strict=True):
                copy_here(target, values)

    def finish(self) -> None:
        """Wait until everything has arrived; the staging is not used afterwards."""
        for buffer in self._both:
            buffer.wait()
            self._copies.unlock(buffer.memory)

    def _next(self) -> _Buffer:
        buffer = next(self._buffers)
        buffer.wait()
        return buffer


@dataclass
class _Buffer:
    memory: Tensor
    _copies: Copies | Workbench
    _mark: Mark | None = field(default=None)  # end of the last work with this buffer

    def holds(self, mark: Mark, copies: Copies | Workbench) -> None:
        self._mark, self._copies = mark, copies

    def wait(self) -> None:
        if self._mark is not None:
            self._copies.finish(self._mark)
            self._mark = None


def fits_back(chunk: DerivedRows, nbytes: int) -> bool:
    """Whether a buffer holds the rows, and afterwards what was computed from them."""
    return max(chunk.nbytes, sum(aligned(target.nbytes) for target in chunk.targets)) <= nbytes


def copy_rows(target: Tensor, rows: Rows) -> None:
    copy_here(target, rows.tensor if isinstance(rows, PlainRows) else rows)


def copy_here(target: Tensor, source: Source) -> None:
    """Copy with numpy, in the calling thread; torch would divide every chunk among more threads."""
    if not isinstance(source, Tensor):
        source.write(target)
        return
    is_plain = target.dtype == source.dtype and target.device.type == "cpu" and target.is_contiguous()
    if is_plain and source.is_contiguous():
        np.copyto(flat(target).numpy(), flat(source).numpy())
    else:
        target.copy_(source)


def flat(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8)


def _laid_out(memory: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of a buffer with the shapes of some tensors, one after the other."""
    views, start = [], 0
    for tensor in tensors:
        views.append(memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        start += aligned(tensor.nbytes)
    return views
