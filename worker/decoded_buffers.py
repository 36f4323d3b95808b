"""Memory in which decoded images come back, used again once nobody looks at them.

Fresh pages of 12 megapixels cost several times what the copy does. A buffer is free when no image lies over it, which
its references tell, whoever holds the image.
"""

from __future__ import annotations

import mmap
import os
import sys
from threading import Lock

MOST_BUFFERS = 4
LARGEST_BUFFER_BYTES = 64 * 2**20
"""Of 16 megapixels; larger images are rare and get memory of their own."""

REFERENCES_WHEN_FREE = 2
"""To a buffer's memory: the buffer's own, and that of the call which counts them."""


class Buffer:
    """Shared memory with a number that helpers know it by."""

    def __init__(self, number: int, descriptor: int) -> None:
        self.number = number
        self.descriptor = descriptor
        self.memory = mmap.mmap(descriptor, 0)
        self.is_lent = False

    @property
    def is_free(self) -> bool:
        return not self.is_lent and sys.getrefcount(self.memory) <= REFERENCES_WHEN_FREE


class Buffers:
    """At most `MOST_BUFFERS` of them; threads may share one instance."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._buffers: list[Buffer] = []
        self._next_number = 0

    def lend(self) -> Buffer | None:
        """The largest free buffer, which nobody else gets until `give_back`; None when there is none."""
        with self._lock:
            free = [buffer for buffer in self._buffers if buffer.is_free]
            if not free:
                return None
            largest = max(free, key=lambda buffer: len(buffer.memory))
            largest.is_lent = True
            return largest

    def give_back(self, buffer: Buffer | None) -> None:
        """End the loan; the buffer is free once no image lies over it."""
        if buffer is not None:
            buffer.is_lent = False

    def adopt(self, descriptor: int) -> mmap.mmap:
        """Map new memory that a helper has made, and keep it for later where it is worth it."""
        with self._lock:
            buffer = Buffer(self._next_number, os.dup(descriptor))
            self._next_number += 1
            length = len(buffer.memory)
            smaller = [kept for kept in self._buffers if kept.is_free and len(kept.memory) < length]
            if length <= LARGEST_BUFFER_BYTES and (len(self._buffers) < MOST_BUFFERS or smaller):
                if len(self._buffers) >= MOST_BUFFERS:
                    self._drop(min(smaller, key=lambda kept: len(kept.memory)))
                self._buffers.append(buffer)
            else:
                os.close(buffer.descriptor)
            return buffer.memory

    def _drop(self, buffer: Buffer) -> None:
        self._buffers.remove(buffer)
        os.close(buffer.descriptor)

    def close(self) -> None:
        """Forget the buffers; images that lie over one keep its memory."""
        with self._lock:
            while self._buffers:
                self._drop(self._buffers[0])
