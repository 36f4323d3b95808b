"""Reads weights from files straight into their final memory, with several threads.

Files are mapped into memory, so the copy from a mapped tensor reads the file. The copy goes straight into pinned
memory, or into a staging buffer for a copy to the GPU, and converts the dtype on the way. A weight that stays mapped,
as on a CPU, is not copied: one read per page brings it into memory. Apart from the system's page cache, no weight is in
host memory twice.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kontext.offload.copies import Copies, Mark, copies_for
from kontext.weights.stored import Packed, Rows, Weight

Fill = Callable[[Tensor, Tensor], None]  # (target, source): write the source's values to the target
Convert = Callable[[Weight, torch.dtype], Tensor]  # (source, dtype): a tensor of that dtype with the source's values
Source = Tensor | Packed | Rows  # that the reader's threads write from
OnProgress = Callable[[int, int], None]  # (bytes read, total bytes)

CHUNK_BYTES = 8 * 2**20  # of a target; 0.2 ms of a bus, so that all threads end at about the same time
PAGE_BYTES = 4096
MOST_THREADS = 8  # at 6 GB/s each they saturate a bus of 50 GB/s: derived, no GPU has confirmed it


def fill_now(target: Tensor, source: Tensor) -> None:
    """Copy the values at once, unless target and source are the same tensor."""
    if target is not source:
        target.copy_(source)


def convert_now(source: Weight, dtype: torch.dtype) -> Tensor:
    if isinstance(source, Tensor):
        return source.to(dtype)
    converted = torch.empty(source.shape, dtype=dtype)
    source.write(converted)
    return converted


def default_threads() -> int:
    """Number of cores, up to the number of threads that saturates a bus."""
    return min(MOST_THREADS, os.cpu_count() or 1)


class Reader:
    """Collects the weights to read, then reads them.

    Args:
        device: device of the model.
        on_progress: called while reading, by one thread at a time but not always the same. An exception from it ends
            the reading.
        threads: number of reading threads; None for the default of the device.
        stage: creates the copies from a thread's staging buffers; None to write to targets directly, except on CUDA.
    """

    def __init__(
        self,
        device: torch.device,
        on_progress: OnProgress | None = None,
        threads: int | None = None,
        stage: Callable[[], Copies] | None = None,
    ) -> None:
        self._device = device
        self._on_progress = on_progress
        self._threads = threads or (1 if device.type == "mps" else default_threads())  # one at a time on Apple's GPU
        self._stage = stage or ((lambda: copies_for(device)) if device.type == "cuda" else None)
        self._unread: dict[int, tuple[Tensor, Weight]] = {}  # by address; the tensors keep it from being reused
        self._fills: list[tuple[Tensor, Weight]] = []
        self._here = threading.local()
        self._lock = threading.Lock()
        self._stagings: list[_Staging] = []
        self._done = self._total = 0

    def convert(self, source: Weight, dtype: torch.dtype) -> Tensor:
        """Tensor of that dtype, converted when it is read: as itself, or as the source of a fill."""
        if isinstance(source, Tensor) and source.dtype == dtype:
            return source
        converted = torch.empty(source.shape, dtype=dtype)  # takes no memory before the first write
        self._unread[converted.data_ptr()] = converted, source
        return converted

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Record a tensor to be filled by `reading`."""
        _, origin = self._unread.pop(source.data_ptr(), (source, source))
        self._fills.append((target, origin))

    def settle(self, network: nn.Module) -> None:
        """Convert the remaining weights of a network now, for code that needs their values before `reading`."""
        for tensor in (*network.parameters(), *network.buffers()):
            converted, source = self._unread.pop(tensor.data_ptr(), (tensor, tensor))
            if isinstance(source, Packed):
                source.write(converted)
            else:
                fill_now(converted, source)

    def stored(self, tensor: Tensor) -> Weight:
        """The weight as its file holds it, of a tensor that `convert` made; the tensor itself when it is no other."""
        return self._unread.get(tensor.data_ptr(), (tensor, tensor))[1]

    def forget(self, tensor: Tensor) -> None:
        """Do not read the values of a tensor that `convert` made: something else took its place."""
        self._unread.pop(tensor.data_ptr(), None)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context in which the weights are read concurrently; its end waits until all are in place."""
        self._total = sum(source.nbytes for _, source in self._fills)
        self._fills.sort(key=lambda fill: fill[1].data_ptr())  # in the order of the file
        chunks = [chunk for target, source in self._fills for chunk in _chunks(target, source)]
        self._fills.clear()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        try:
            reads = [pool.submit(self._read, *chunk) for chunk in chunks]
            yield
            for read in reads:
                read.result()
        finally:
            pool.shutdown(cancel_futures=True)
            for staging in self._stagings:
                staging.finish()

    @torch.inference_mode()
    def _read(self, target: Tensor, source: Source) -> None:
        if isinstance(source, Tensor) and target.data_ptr() == source.data_ptr():
            _page_in(source)
        elif self._stage is not None and target.device.type == self._device.type and _fits_staging(target, source):
            self._staging_of_this_thread(self._stage).send(target, source)
        else:
            _copy(target, source)
        with self._lock:
            self._done += source.nbytes
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)

    def _staging_of_this_thread(self, stage: Callable[[], Copies]) -> _Staging:
        if not hasattr(self._here, "staging"):
            self._here.staging = _Staging(stage())
            with self._lock:
                self._stagings.append(self._here.staging)
        staging: _Staging = self._here.staging
        return staging


class _Staging:
    """Staging buffers of a thread: one is filled while the other is copied to the device."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        # The allocator may return memory that earlier work still uses; copies wait for that work.
        self._begin = copies.mark()
        self._buffers = cycle([_Buffer(copies.host_buffer(CHUNK_BYTES)) for _ in range(2)])
        self._last: Mark | None = None

    def send(self, target: Tensor, source: Source) -> None:
        buffer = next(self._buffers)
        if buffer.copied is not None:
            self._copies.finish(buffer.copied)
        staged = buffer.memory[: target.nbytes]
        _copy(staged.view(target.dtype).view(target.shape), source)
        buffer.copied = self._last = self._copies.copy(target.view(-1).view(torch.uint8), staged, after=self._begin)

    def finish(self) -> None:
        """Wait until all copies have arrived; the last one to start is the last to end."""
        if self._last is not None:
            self._copies.finish(self._last)


@dataclass
class _Buffer:
    memory: Tensor
    copied: Mark | None = None  # end of the last copy from this buffer


def _chunks(target: Tensor, source: Weight) -> Iterator[tuple[Tensor, Source]]:
    """Chunks of both, of at most `CHUNK_BYTES` where rows allow it; flat ones of plain tensors.

    Tensors that stay mapped or are not contiguous come whole.
    """
    target = target.detach()
    if isinstance(source, Packed):
        row_bytes = max(1, target.nbytes // max(1, len(target)))
        yield from source.pieces(target, max(1, CHUNK_BYTES // row_bytes))
        return
    source = source.detach()
    stays_mapped = target.data_ptr() == source.data_ptr()  # paging in takes about 10 ms per gigabyte
    if stays_mapped or not (target.is_contiguous() and source.is_contiguous()):
        yield target, source
        return
    step = CHUNK_BYTES // target.itemsize
    target, source = target.view(-1), source.view(-1)
    for start in range(0, len(source), step):
        yield target[start : start + step], source[start : start + step]


def _fits_staging(target: Tensor, source: Source) -> bool:
    is_plain = not isinstance(source, Tensor) or source.is_contiguous()
    return target.nbytes <= CHUNK_BYTES and target.is_contiguous() and is_plain


def _copy(target: Tensor, source: Source) -> None:
    """Copy with numpy, in the calling thread; torch would divide every chunk among more threads."""
    if not isinstance(source, Tensor):
        source.write(target)
        return
    is_plain = target.dtype == source.dtype and target.device.type == "cpu" and target.is_contiguous()
    if is_plain and source.is_contiguous():
        np.copyto(_bytes(target), _bytes(source))
    else:
        target.copy_(source)


def _page_in(mapped: Tensor) -> None:
    """Bring a mapped tensor's pages into memory."""
    if mapped.is_contiguous():
        _bytes(mapped)[::PAGE_BYTES].max(initial=0)


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()
