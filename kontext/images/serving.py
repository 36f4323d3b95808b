"""A process that only decodes: `python -m kontext.images.serving SOCKET MEMORY_BYTES`.

Decoders meet bytes from strangers. Here one that hangs, crashes or eats memory takes nothing along: the process has a
limit of its own for memory, its parent ends it when it takes too long, and it knows no settings and no secrets.

    parent -> {"max_pixels": ..., "options": {...}, "buffer": N or null}
              + descriptor of the file's bytes [+ descriptor of that buffer, when it comes for the first time]
    child  -> {"size": [w, h], "warnings": [...], "is_fresh": false}, the pixels being in the buffer;
              with "is_fresh": true they are in new memory, whose descriptor comes along;
              or {"error": "..."}, or {"out_of_memory": true}
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import socket
import sys
from typing import Any

from PIL import Image

from kontext.errors import ImageError
from kontext.images.decoding import DecodedImage, decode_with_warnings
from kontext.images.options import ImageOptions
from kontext.images.shared import bytes_of, copy_into, new_memory

LONGEST_MESSAGE_BYTES = 2**16


class Server:
    """Answers requests until the parent hangs up."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffers: dict[int, mmap.mmap] = {}
        """Memory of the parent by number: mapping it anew would cost more than copying the pixels."""

    def serve(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._connection, LONGEST_MESSAGE_BYTES, 2)
            if not message:
                return
            request = json.loads(message)
            for descriptor in descriptors[1:]:
                self._buffers[request["buffer"]] = mmap.mmap(descriptor, 0)
                os.close(descriptor)
            answer, fresh = self._answer(request, descriptors[0])
            socket.send_fds(self._connection, [json.dumps(answer).encode()[:LONGEST_MESSAGE_BYTES]], fresh)
            for descriptor in fresh:
                os.close(descriptor)

    def _answer(self, request: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], list[int]]:
        try:
            decoded = _decode(request, descriptor)
            fresh = self._hand_over(decoded.image, request["buffer"])
        except ImageError as error:
            if isinstance(error.__cause__, MemoryError):
                return {"out_of_memory": True}, []
            return {"error": str(error)[:2000]}, []
        except MemoryError:
            return {"out_of_memory": True}, []
        return {"size": decoded.image.size, "warnings": decoded.warnings, "is_fresh": bool(fresh)}, fresh

    def _hand_over(self, image: Image.Image, number: int | None) -> list[int]:
        """Copy the pixels into the parent's buffer or, where it is too small, into new memory."""
        buffer = self._buffers.get(number) if number is not None else None
        length = bytes_of(image.size)
        if buffer is not None and len(buffer) >= length:
            copy_into(buffer, image)
            return []
        descriptor = new_memory(length)
        with mmap.mmap(descriptor, length) as memory:
            copy_into(memory, image)
        return [descriptor]


def _decode(request: dict[str, Any], descriptor: int) -> DecodedImage:
    try:
        length = os.fstat(descriptor).st_size
        data = b""
        if length:
            with mmap.mmap(descriptor, length, access=mmap.ACCESS_READ) as memory:
                data = memory[:]
    finally:
        os.close(descriptor)
    options = ImageOptions(**request["options"])
    return decode_with_warnings(data, max_pixels=request["max_pixels"], options=options)


def main() -> None:
    descriptor, memory_bytes = (int(argument) for argument in sys.argv[1:])
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Server(socket.socket(fileno=descriptor)).serve()


if __name__ == "__main__":
    main()
