"""RGB images in memory that two processes share, without a copy on the reader's side."""

from __future__ import annotations

import mmap
import os
import tempfile

from PIL import Image

BYTES_PER_PIXEL = 4
"""Of Pillow's own layout for RGB: three channels and one byte that nobody reads."""


def share(image: Image.Image) -> int:
    """Copy an RGB image into new shared memory and return its file descriptor, which the caller closes."""
    descriptor = new_memory()
    try:
        os.ftruncate(descriptor, image.width * image.height * BYTES_PER_PIXEL)
        with mmap.mmap(descriptor, 0) as memory:
            target = _laid_over(memory, image.size)
            target.im.paste(image.im, (0, 0, *image.size))
            del target  # the memory can only be closed when no image lies over it
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def take(descriptor: int, size: tuple[int, int]) -> Image.Image:
    """The image in shared memory, as long as it is used; the descriptor may be closed."""
    memory = mmap.mmap(descriptor, size[0] * size[1] * BYTES_PER_PIXEL, flags=mmap.MAP_PRIVATE)
    return _laid_over(memory, size)


def _laid_over(memory: mmap.mmap, size: tuple[int, int]) -> Image.Image:
    # What `Image.frombuffer` does for RGBX, with the mode that the pixels have: a change of mode would copy them.
    core = Image.core.map_buffer(memory, size, "raw", 0, ("RGB", 0, 1))  # type: ignore[attr-defined]
    return Image.new("RGB", (0, 0))._new(core)


def new_memory() -> int:
    """A descriptor of an empty file that lies in memory and has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("image")
    with tempfile.TemporaryFile() as file:  # macOS
        return os.dup(file.fileno())
