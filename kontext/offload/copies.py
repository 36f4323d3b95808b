"""Copies of weights to a device while it computes: a CUDA stream, or a thread where there is none.

Both keep the same three promises. Copies are done in the order they were asked for. A copy begins only when the work
given to the device before `mark` is done, so that it overwrites nothing in use. What is computed after `wait` sees the
copy's result.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from kontext.device import synchronize

Mark = Any  # a place in the device's work; only the Copies that made it can read it


class Copies(Protocol):
    """Copies weights to one device beside what it computes."""

    device: torch.device

    def host_buffer(self, nbytes: int) -> Tensor:
        """Host memory that can be copied from at full speed."""

    def device_buffer(self, nbytes: int) -> Tensor:
        """Memory of the device."""

    def mark(self) -> Mark:
        """The end of all that the device was given to compute so far."""

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        """Copy from a host buffer to the device once `after` is reached; the mark returned is the copy's end."""

    def wait(self, copied: Mark) -> None:
        """Let the device compute no further before a copy's end."""

    def finish(self, copied: Mark) -> None:
        """Wait for a copy's end on the host, which may then write to what was copied from."""


def copies_for(device: torch.device) -> Copies:
    """The fastest way of copying that the device has."""
    return StreamCopies(device) if device.type == "cuda" else ThreadCopies(device)


class StreamCopies(Copies):
    """Copies on a CUDA stream of their own, from pinned memory; the host never waits.

    Buffers live as long as the weights, so the allocator need not be told (`record_stream`) who uses them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def host_buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def device_buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        return torch.cuda.current_stream(self.device).record_event()

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        with torch.cuda.stream(self._stream):
            if after is not None:
                self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, copied: Mark) -> None:
        torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self, copied: Mark) -> None:
        copied.synchronize()


class ThreadCopies(Copies):
    """Copies by a thread, for devices without streams and to try offload out on a CPU.

    Args:
        bytes_per_second: the rate to keep to, as that of a bus; None for as fast as it goes.
    """

    def __init__(self, device: torch.device, bytes_per_second: float | None = None) -> None:
        self.device = device
        self.device_bytes = 0  # handed out
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0  # when a bus of that rate has done all before
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="copies")

    def host_buffer(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def device_buffer(self, nbytes: int) -> Tensor:
        self.device_bytes += nbytes
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def mark(self) -> Mark:
        synchronize(self.device)  # a thread cannot wait for the device later

    def copy(self, target: Tensor, source: Tensor, after: Mark | None) -> Mark:
        return self._thread.submit(self._copy, target, source)

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
