"""Copies of weights to a device while it computes: on a CUDA stream, or by a thread on other devices.

Both give the same three guarantees. Copies run in the order of the calls. A copy starts only after the device has
finished the work launched before `mark`, so it overwrites nothing in use. Work launched after `wait` sees the copied
values.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from kontext.device import record_event, synchronize
from kontext.offload.host_memory import before_return, host_pages

REGISTER_PORTABLE = 1  # cudaHostRegisterPortable: locked for every GPU

log = logging.getLogger(__name__)

Mark = Any  # position in the device's queue of work; only the Copies that made it can read it


class Copies(Protocol):
    """Copies of weights to one device, concurrent with its computation."""

    device: torch.device

    def host_buffer(self, nbytes: int) -> Tensor:
        """Allocate host memory, from which copies run at full speed once it is locked."""

    def lock(self, buffer: Tensor) -> None:
        """Lock a host buffer in memory until `unlock`, or until nothing uses it any more; best when it is filled."""

    def unlock(self, buffer: Tensor) -> None:
        """Let the system move a host buffer again; no copy from it may be under way."""

    def device_buffer(self, nbytes: int) -> Tensor:
        """Allocate memory of the device."""

    def mark(self) -> Mark:
        """Mark the end of the work launched on the device so far."""

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Start a copy from a host buffer to the device after `after`; return the mark of its end."""

    def run(self, work: Callable[[], object]) -> Mark:
        """Start work of the device after all earlier copies and before all later ones; return the mark of its end."""

    def wait(self, copied: Mark) -> None:
        """Make the device wait for the end of a copy before it computes further."""

    def finish(self, copied: Mark) -> None:
        """Wait on the host for the end of a copy; its source may be overwritten afterwards."""


def copies_for(device: torch.device) -> Copies:
    """Fastest implementation of `Copies` for the device."""
    return StreamCopies(device) if device.type == "cuda" else ThreadCopies(device)


class StreamCopies(Copies):
    """Copies on a separate CUDA stream, from locked memory; the host never waits.

    Buffers live as long as the weights, so the allocator needs no `record_stream`.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._locked: dict[int, Callable[[], object]] = {}  # by address, what unlocks it

    def host_buffer(self, nbytes: int) -> Tensor:
        return host_pages(nbytes)

    def lock(self, buffer: Tensor) -> None:
        cuda: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        address, device = buffer.data_ptr(), self.device

        def unlock() -> None:
            with torch.cuda.device(device):
                cuda.cudaHostUnregister(address)

        with torch.cuda.device(device):  # otherwise a thread would take memory of the first GPU
            error = int(cuda.cudaHostRegister(address, buffer.nbytes, REGISTER_PORTABLE))
            if error:
                log.warning("host_memory_not_locked bytes=%d cuda_error=%d: copies are slower", buffer.nbytes, error)
                _forget_error(device)
                return
        self._locked[address] = before_return(buffer, unlock)

    def unlock(self, buffer: Tensor) -> None:
        if unlock := self._locked.pop(buffer.data_ptr(), None):
            unlock()

    def device_buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        return record_event(torch.cuda.current_stream(self.device))

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return record_event(self._stream)

    def run(self, work: Callable[[], object]) -> Mark:
        with torch.cuda.stream(self._stream):
            work()
            return record_event(self._stream)

    def wait(self, copied: Mark) -> None:
        torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self, copied: Mark) -> None:
        copied.synchronize()


def _forget_error(device: torch.device) -> None:
    """Take the error of a refused call from CUDA's books; the thread's next kernel would be blamed for it."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device)


class ThreadCopies(Copies):
    """Copies by a thread, for devices without streams and for trying offload on a CPU.

    Args:
        bytes_per_second: rate limit that simulates a bus; None for no limit.
    """

    def __init__(self, device: torch.device, bytes_per_second: float | None = None) -> None:
        self.device = device
        self.device_bytes = 0  # allocated so far
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0  # time at which the simulated bus has finished all earlier copies
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies")

    def host_buffer(self, nbytes: int) -> Tensor:
        return host_pages(nbytes)

    def lock(self, buffer: Tensor) -> None:
        """Nothing: the CPU copies from any memory."""

    unlock = lock

    def device_buffer(self, nbytes: int) -> Tensor:
        self.device_bytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        synchronize(self.device)  # a thread cannot wait for the device later

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        return self._thread.submit(self._copy, target, source)

    def run(self, work: Callable[[], object]) -> Mark:
        return self._thread.submit(torch.inference_mode()(work))

    def wait(self, copied: Mark) -> None:
        copied.result()

    finish = wait

    @torch.inference_mode()
    def _copy(self, target: Tensor, source: Tensor) -> None:
        started = time.perf_counter()
        target.copy_(source)
        if self._bytes_per_second is not None:
            self._free_at = max(self._free_at, started) + source.nbytes / self._bytes_per_second
            time.sleep(max(0.0, self._free_at - time.perf_counter()))
