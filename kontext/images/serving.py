"""A process that only decodes: `python -m kontext.images.serving SOCKET MEMORY_BYTES`.

Decoders meet bytes from strangers. Here one that hangs, crashes or eats memory takes nothing along: the process has a
limit of its own for memory, its parent ends it when it takes too long, and it knows no settings and no secrets.

    parent -> {"max_pixels": ..., "options": {...}} + descriptor of the file's bytes
    child -> {"size": [w, h], "warnings": [...]} + descriptor of the pixels, or {"error": "..."} or
             {"out_of_memory": true}
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import socket
import sys
from typing import Any

from kontext.errors import ImageError
from kontext.images.decoding import DecodedImage, decode_with_warnings
from kontext.images.options import ImageOptions
from kontext.images.shared import share

LONGEST_MESSAGE_BYTES = 2**16


def serve(connection: socket.socket) -> None:
    """Answer requests until the parent hangs up."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, LONGEST_MESSAGE_BYTES, 1)
        if not message:
            return
        answer, pixels = _answer(json.loads(message), descriptors[0])
        socket.send_fds(connection, [json.dumps(answer).encode()[:LONGEST_MESSAGE_BYTES]], pixels)
        for descriptor in pixels:
            os.close(descriptor)


def _answer(request: dict[str, Any], descriptor: int) -> tuple[dict[str, Any], list[int]]:
    try:
        decoded = _decode(request, descriptor)
        pixels = share(decoded.image)
    except ImageError as error:
        if isinstance(error.__cause__, MemoryError):
            return {"out_of_memory": True}, []
        return {"error": str(error)[:2000]}, []
    except MemoryError:
        return {"out_of_memory": True}, []
    return {"size": decoded.image.size, "warnings": decoded.warnings}, [pixels]


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
    serve(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main()
