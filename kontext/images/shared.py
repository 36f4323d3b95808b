"""RGB images in memory that two processes share, without a copy on the reader's side."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BYTES_PER_PIXEL = 4
"""Of Pillow's own layout for RGB: three channels and one byte that nobody reads."""

NOTHING_WRITTEN = 0x5A
"""In that byte, where decoders write 255."""


def bytes_of(size: tuple[int, int]) -> int:
    """Bytes that an image of this size takes in shared memory."""
    return size[0] * size[1] * BYTES_PER_PIXEL


def new_memory(length: int = 0) -> int:
    """A descriptor of a file that lies in memory and has no name; the caller closes it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("image")
    else:  # macOS
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, length)
    return descriptor


def mark_rows(memory: mmap.mmap, size: tuple[int, int]) -> None:
    """Note in the unread byte of both ends of each row that nothing was written there yet."""
    _ends_of_rows(memory, size)[:] = NOTHING_WRITTEN


def are_rows_written(memory: mmap.mmap, size: tuple[int, int]) -> bool:
    """True if a decoder has written every row since `mark_rows`: what it left out would show an earlier image."""
    return not (_ends_of_rows(memory, size) == NOTHING_WRITTEN).any()


def _ends_of_rows(memory: mmap.mmap, size: tuple[int, int]) -> NDArray[np.uint8]:
    width, height = size
    pixels = np.frombuffer(memory, np.uint8, bytes_of(size)).reshape(height, width, BYTES_PER_PIXEL)
    return pixels[:, :: max(1, width - 1), -1]


def laid_over(memory: mmap.mmap, size: tuple[int, int]) -> Image.Image:
    """The image in that memory; as long as it is used, the memory counts one reference more."""
    # What `Image.frombuffer` does for RGBX, with the mode that the pixels have: a change of mode would copy them.
    core = Image.core.map_buffer(memory, size, "raw", 0, ("RGB", 0, 1))  # type: ignore[attr-defined]
    return Image.new("RGB", (0, 0))._new(core)
