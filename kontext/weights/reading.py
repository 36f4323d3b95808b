"""Reads weights from files straight into their final memory, with several threads.

Files are mapped into memory, so the copy from a mapped tensor reads the file. The copy goes straight into the memory
that a weight is streamed from, or into a staging buffer for a copy to the GPU, and converts the dtype on the way. A
weight that stays mapped, as on a CPU, is not copied: one read per page brings it into memory. Apart from the system's
page cache, no weight is in host memory twice.
"""

from __future__ import annotations

import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from kontext.device import release_cached_memory
from kontext.offload.copies import Copies, copies_for
from kontext.weights.staging import (
    Compute,
    Derived,
    DerivedRows,
    Source,
    Staging,
    Workbench,
    copy_here,
    fits_back,
    flat,
)
from kontext.weights.stored import Packed, Weight
from kontext.weights.values import Values

Convert = Callable[[Weight, torch.dtype], Tensor]  # (source, dtype): a tensor of that dtype with the source's values
OnProgress = Callable[[int, int], None]  # (bytes read, total bytes)
_Work = tuple[int, int, Callable[..., object], tuple[Any, ...]]  # address in the file, order there, function, arguments

# Of Python's lock between threads, while weights are read: the compiler, which works meanwhile, would hold it for 5 ms
# whenever a reader has finished a copy and needs it for the next.
SWITCH_SECONDS = 1e-4
CHUNK_BYTES = 8 * 2**20  # of a target; 0.2 ms of a bus, so that all threads end at about the same time
PAGE_BYTES = 4096
MOST_THREADS = (
    8  # at 6 GB/s each they saturate a bus of 50 GB/s: derived; on an H200's host they read 54 GB/s of mapped files
)


def convert_now(source: Weight, dtype: torch.dtype) -> Tensor:
    if isinstance(source, Tensor):
        return source.to(dtype)
    converted = torch.empty(source.shape, dtype=dtype)
    source.write(converted)
    return converted


def default_threads() -> int:
    """Number of cores, up to the number of threads that saturates a bus."""
    return min(MOST_THREADS, os.cpu_count() or 1)


class Reader(Values):
    """Collects the weights to read, then reads them, and again whenever they are placed anew.

    Args:
        device: device of the model.
        on_progress: called in the first reading, by one thread at a time but not always the same. An exception from it
            ends the reading.
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
        # By address; the tensors keep it from being reused.
        self._converted: dict[int, tuple[Tensor, Weight]] = {}
        self._derived: dict[int, tuple[Tensor, Derived, int]] = {}  # with the number of the output
        self._fills: list[tuple[Tensor, Weight]] = []
        self._computed: list[Derived] = []
        self._acts: list[tuple[Tensor, Callable[[], object]]] = []
        self._here = threading.local()
        self._lock = threading.Lock()
        self._stagings: list[Staging] = []
        self._bench: Workbench | None = None
        self._done = self._total = 0

    def convert(self, source: Weight, dtype: torch.dtype) -> Tensor:
        """Tensor of that dtype, converted when it is read: as itself, or as the source of a fill."""
        if isinstance(source, Tensor) and source.dtype == dtype:
            return source
        converted = torch.empty(source.shape, dtype=dtype)  # takes no memory before the first write
        self._converted[converted.data_ptr()] = converted, source
        return converted

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Record a tensor to be filled by `reading`."""
        if source.data_ptr() in self._derived:
            _, derived, i = self._derived[source.data_ptr()]
            derived.targets[i] = target
            if derived not in self._computed:
                self._computed.append(derived)
            return
        self._fills.append((target, self.stored(source)))

    def when_filled(self, buffer: Tensor, act: Callable[[], object]) -> None:
        self._acts.append((buffer, act))

    def derive(self, weight: Tensor, outputs: Sequence[Tensor], compute: Compute) -> None:
        """Record tensors to be computed from a weight when it is read, in its place.

        They are computed on the model's device where weights are copied there.

        Args:
            outputs: with one entry for each row of the weight; their values are filled in as those of weights are.
        """
        derived = Derived(self.stored(weight), weight.dtype, compute, list(outputs))
        self.forget(weight)
        for i, output in enumerate(outputs):
            self._derived[output.data_ptr()] = output, derived, i

    def stored(self, tensor: Tensor) -> Weight:
        """The weight as its file holds it, of a tensor that `convert` made; the tensor itself when it is no other."""
        return self._converted.get(tensor.data_ptr(), (tensor, tensor))[1]

    def forget(self, tensor: Tensor) -> None:
        """Do not read the values of a tensor that `convert` made: something else took its place."""
        self._converted.pop(tensor.data_ptr(), None)

    def clear(self) -> None:
        for recorded in (self._fills, self._computed, self._acts):
            recorded.clear()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Context in which the weights are read concurrently; its end waits until all are in place."""
        self._total = sum(source.nbytes for source in (*(source for _, source in self._fills), *self._computed))
        self._done = 0
        work = sorted(self._work(), key=lambda item: item[:2])  # in the order of the file
        self.clear()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")
        usual = sys.getswitchinterval()
        is_shortened = usual > SWITCH_SECONDS  # not by another model's reading
        if is_shortened:
            sys.setswitchinterval(SWITCH_SECONDS)
        try:
            reads = [pool.submit(read, *chunk) for _, _, read, chunk in work]
            yield
            for read in reads:
                read.result()
        finally:
            pool.shutdown(cancel_futures=True)
            if is_shortened:
                sys.setswitchinterval(usual)
            for staging in self._stagings:
                staging.finish()
            self._stagings.clear()
            if self._bench is not None:
                self._bench = None
                release_cached_memory(self._device)  # the bench's stream has its own, and nothing to compute any more
            self._on_progress = None

    def _work(self) -> Iterator[_Work]:
        """Chunks to read and to compute, and what is to be done with a buffer behind its last chunk."""
        ends = _Ends([buffer for buffer, _ in self._acts])
        for target, source in self._fills:
            for chunk in _chunks(target, source):
                ends.note(chunk[0], chunk[1].data_ptr())
                yield chunk[1].data_ptr(), 0, self._read, chunk
        for derived in self._computed:
            for rows in derived.chunks(CHUNK_BYTES):
                ends.note(rows.targets[0], rows.rows.data_ptr())
                yield rows.rows.data_ptr(), 0, self._compute, (rows,)
        for buffer, act in self._acts:
            yield ends.of(buffer), 1, act, ()

    @torch.inference_mode()
    def _compute(self, chunk: DerivedRows) -> None:
        if self._stage is not None and fits_back(chunk, CHUNK_BYTES):
            to_device = chunk.targets[0].device.type == self._device.type
            self._staging_of_this_thread(self._stage).compute(chunk, self._bench_for_all(self._stage), to_device)
        else:
            chunk.compute_here()
        self._note(chunk.rows.nbytes)

    @torch.inference_mode()
    def _read(self, target: Tensor, source: Source) -> None:
        if isinstance(source, Tensor) and target.data_ptr() == source.data_ptr():
            _page_in(source)
        elif self._stage is not None and target.device.type == self._device.type and _fits_staging(target, source):
            self._staging_of_this_thread(self._stage).send(target, source)
        else:
            copy_here(target, source)
        self._note(source.nbytes)

    def _note(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)

    def _bench_for_all(self, stage: Callable[[], Copies]) -> Workbench:
        with self._lock:
            if self._bench is None:
                self._bench = Workbench(stage(), CHUNK_BYTES)
            return self._bench

    def _staging_of_this_thread(self, stage: Callable[[], Copies]) -> Staging:
        if not hasattr(self._here, "staging"):
            self._here.staging = Staging(stage(), CHUNK_BYTES)
            with self._lock:
                self._stagings.append(self._here.staging)
        staging: Staging = self._here.staging
        return staging


class _Ends:
    """For every buffer the last address in the files that is read into it."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._starts = sorted((buffer.data_ptr(), buffer.nbytes) for buffer in buffers)
        self._last: dict[int, int] = {}

    def note(self, target: Tensor, address: int) -> None:
        i = bisect_right(self._starts, target.data_ptr(), key=itemgetter(0)) - 1
        if i < 0:
            return
        start, nbytes = self._starts[i]
        if target.data_ptr() < start + nbytes:
            self._last[start] = max(address, self._last.get(start, 0))

    def of(self, buffer: Tensor) -> int:
        return self._last.get(buffer.data_ptr(), 0)


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


def _page_in(mapped: Tensor) -> None:
    """Bring a mapped tensor's pages into memory."""
    if mapped.is_contiguous():
        flat(mapped).numpy()[::PAGE_BYTES].max(initial=0)
