"""RGB images in memory that two processes share, without a copy on the reader's side."""

from __future__ import annotations

import mmap
import os
import tempfile

from PIL import Image

BYTES_PER_PIXEL = 4
"""Of Pillow's own layout for RGB: three channels and one byte that nobody reads."""


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


def laid_over(memory: mmap.mmap, size: tuple[int, int]) -> Image.Image:
    """The image in that memory; as long as it is used, the memory counts one reference more."""
    # What `Image.frombuffer` does for RGBX, with the mode that the pixels have: a change of mode would copy them.
    core = Image.core.map_buffer(memory, size, "raw", 0, ("RGB", 0, 1))  # type: ignore[attr-defined]
    return Image.new("RGB", (0, 0))._new(core)
