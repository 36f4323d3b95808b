"""A process that only decodes: `python -m kontext.images.serving SOCKET SOURCE MEMORY_BYTES`.

Decoders meet bytes from strangers. Here one that hangs, crashes or eats memory takes nothing along: the process has a
limit of its own for memory, its parent ends it when it takes too long, and it knows no settings and no secrets.

    parent -> writes the file's bytes into SOURCE, which both have open;
              {"bytes": ..., "max_pixels": ..., "options": {...}, "buffer": N or null}
              [+ descriptor of that buffer, when it comes for the first time]
    child  -> {"size": [w, h], "warnings": [...], "is_fresh": false}, the pixels being in the buffer;
              with "is_fresh": true they are in new memory, whose descriptor comes along;
              or {"error": "..."}, or {"out_of_memory": true}
"""

from __future__ import annotations

import io
import json
import mmap
import os
import resource
import socket
import sys
from typing import Any

from PIL import Image

from kontext.errors import ImageError
from kontext.images.decoding import decode_with_warnings
from kontext.images.options import ImageOptions
from kontext.images.shared import are_rows_written, bytes_of, laid_over, mark_rows, new_memory

LONGEST_MESSAGE_BYTES = 2**16


class Server:
    """Answers requests until the parent hangs up."""

    def __init__(self, connection: socket.socket, source: int) -> None:
        self._connection = connection
        self._source = source
        self._buffers: dict[int, mmap.mmap] = {}
        """Memory of the parent by number: mapping it anew would cost more than copying the pixels."""

    def serve(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._connection, LONGEST_MESSAGE_BYTES, 1)
            if not message:
                return
            request = json.loads(message)
            for descriptor in descriptors:
                self._buffers[request["buffer"]] = mmap.mmap(descriptor, 0)
                os.close(descriptor)
            answer, fresh = self._answer(request)
            try:
                socket.send_fds(self._connection, [json.dumps(answer).encode()[:LONGEST_MESSAGE_BYTES]], fresh)
            except BrokenPipeError:  # the parent died meanwhile
                return
            finally:
                for descriptor in fresh:
                    os.close(descriptor)

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        landing = Landing(self._buffers.get(request["buffer"]))
        try:
            decoded = decode_with_warnings(
                os.pread(self._source, request["bytes"], 0),
                max_pixels=request["max_pixels"],
                options=ImageOptions(**request["options"]),
                canvas=landing.canvas,
            )
            landing.take(decoded.image)
        except (ImageError, MemoryError) as error:
            landing.discard()
            if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
                return {"out_of_memory": True}, []
            return {"error": str(error)[:2000]}, []
        fresh = landing.fresh
        return {"size": decoded.image.size, "warnings": decoded.warnings, "is_fresh": bool(fresh)}, fresh


class Landing:
    """Where the pixels of one image go: into the parent's buffer or, where that is too small, into new memory.

    Args:
        buffer: of the parent, if it lent one.
    """

    def __init__(self, buffer: mmap.mmap | None) -> None:
        self._memory = buffer
        self._canvas: Image.Image | None = None
        self.fresh: list[int] = []
        """The descriptor of new memory, when that was needed."""

    def canvas(self, size: tuple[int, int]) -> Image.Image:
        """An image over that memory."""
        length = bytes_of(size)
        if self._memory is None or len(self._memory) < length:
            self.discard()
            self.fresh = [new_memory(length)]
            self._memory = mmap.mmap(self.fresh[0], length)
        mark_rows(self._memory, size)
        self._canvas = laid_over(self._memory, size)
        return self._canvas

    def take(self, image: Image.Image) -> None:
        """Copy the image into that memory, unless it was decoded there.

        Raises:
            ImageError: rows were left out, which would show what the memory held before.
        """
        if self._canvas is None or image.im is not self._canvas.im:
            self.canvas(image.size).im.paste(image.im, (0, 0, *image.size))
        elif self._memory is not None and not are_rows_written(self._memory, image.size):
            raise ImageError("the picture is damaged: its decoder left rows out")

    def discard(self) -> None:
        """Close new memory that nobody will look at."""
        while self.fresh:
            os.close(self.fresh.pop())


def warm_up() -> None:
    """Decode a small image of each common kind: Pillow loads its decoders at the first use, which takes 0.2 s."""
    image = Image.new("RGB", (8, 8))
    for kind in ("PNG", "JPEG", "WEBP"):
        file = io.BytesIO()
        image.save(file, kind)
        decode_with_warnings(file.getvalue())


def main() -> None:
    connection, source, memory_bytes = (int(argument) for argument in sys.argv[1:])
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warm_up()
    Server(socket.socket(fileno=connection), source).serve()


if __name__ == "__main__":
    main()
