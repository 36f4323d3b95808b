"""Decodes inputs in helper processes: a hostile image ends its job, and neither the worker nor its neighbours' jobs.

A helper is started once and kept warm. One that takes too long, or whose job is cancelled meanwhile, is killed; the
next image gets a fresh one. Images that come at the same time have a helper each, so a slow one delays nobody.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock, Thread

import kontext
from kontext import DecodedImage, ImageError, ImageOptions
from kontext.images.serving import LONGEST_MESSAGE_BYTES
from kontext.images.shared import laid_over, new_memory
from worker.decoded_buffers import Buffer, Buffers

POLL_SECONDS = 0.1
"""How often a job whose image is being decoded checks for cancellation."""

LARGEST_KEPT_SOURCE_BYTES = 16 * 2**20
"""Of a file whose memory a helper keeps for the next one; phones' photos are smaller."""

MOST_IDLE = 2
"""Helpers kept warm; others end when their image is done."""

SOCKET_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR")
"""What a helper needs of the environment; the rest holds secrets."""


class Decoder:
    """Decodes images within bounds of time and memory; threads may share one.

    Args:
        max_pixels: width * height above which nothing is decoded.
        max_seconds: for one image.
        max_memory_bytes: of one helper, everything included.
    """

    def __init__(self, max_pixels: int, max_seconds: float, max_memory_bytes: int) -> None:
        self._max_pixels = max_pixels
        self._max_seconds = max_seconds
        self._max_memory_bytes = max_memory_bytes
        self._idle: list[Helper] = []
        self._buffers = Buffers()
        self._lock = Lock()
        self._is_closed = False

    def warm_up(self) -> None:
        """Start a helper in the background, so that the first image need not wait for it."""
        Thread(target=lambda: self._give_back(self._start()), name="decoder", daemon=True).start()

    def decode(self, data: bytes, check: Callable[[], None]) -> DecodedImage:
        """Decode one image.

        Args:
            check: called while waiting; what it raises ends the decoding.
        Raises:
            ImageError: it is no image, or one that cannot be decoded within the bounds.
        """
        helper, buffer = self._take(), self._buffers.lend()
        try:
            return helper.decode(data, self._max_pixels, self._max_seconds, check, buffer)
        finally:
            self._give_back(helper)  # first: a helper that is still at work ends before its buffer can be lent again
            self._buffers.give_back(buffer)

    def close(self) -> None:
        """End the helpers."""
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for helper in idle:
            helper.kill()
        self._buffers.close()

    def _take(self) -> Helper:
        with self._lock:
            while self._idle:
                helper = self._idle.pop()
                if helper.is_alive:
                    return helper
        return self._start()

    def _give_back(self, helper: Helper) -> None:
        with self._lock:
            if helper.is_alive and not helper.is_at_work and len(self._idle) < MOST_IDLE and not self._is_closed:
                self._idle.append(helper)
                return
        helper.kill()

    def _start(self) -> Helper:
        return Helper(self._max_memory_bytes, self._buffers)


class Helper:
    """One process of `kontext.images.serving`."""

    def __init__(self, max_memory_bytes: int, buffers: Buffers) -> None:
        self._max_memory_bytes = max_memory_bytes
        self._buffers = buffers
        self._known_buffers: set[int] = set()
        self.is_at_work = False
        self._source = os.fdopen(new_memory(), "r+b", buffering=0)
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, SOCKET_KIND)
        self._connection.settimeout(POLL_SECONDS)
        with theirs:
            given = [theirs.fileno(), self._source.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "kontext.images.serving", *map(str, given), str(max_memory_bytes)],
                pass_fds=given,
                stdin=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the worker, which ends its helpers itself
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def decode(
        self, data: bytes, max_pixels: int, max_seconds: float, check: Callable[[], None], buffer: Buffer | None
    ) -> DecodedImage:
        """Send one image and wait for its pixels.

        Args:
            buffer: memory for the pixels, if they fit.
        Raises:
            ImageError: it cannot be decoded. The helper may be dead afterwards, or still at work on it.
        """
        pixels: list[int] = []
        try:
            self._send(data, max_pixels, buffer)
            answer, pixels = self._receive(max_seconds, check)
            return self._read(answer, pixels, buffer)
        except ConnectionError:
            raise ImageError(f"the image ended its decoder ({self._how_it_ended()}): save it again as PNG") from None
        finally:
            for descriptor in pixels:
                os.close(descriptor)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self._connection.close()
        self._source.close()

    def _send(self, data: bytes, max_pixels: int, buffer: Buffer | None) -> None:
        number = buffer.number if buffer else None
        request = {"bytes": len(data), "max_pixels": max_pixels, "options": asdict(ImageOptions()), "buffer": number}
        descriptors = []
        if buffer and buffer.number not in self._known_buffers:
            descriptors = [buffer.descriptor]
            self._known_buffers.add(buffer.number)
        self._write_source(data)
        self.is_at_work = True
        socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)

    def _write_source(self, data: bytes) -> None:
        """Overwrite the file before, whose pages cost more to get than to fill."""
        if self._source.seek(0, os.SEEK_END) > LARGEST_KEPT_SOURCE_BYTES:
            self._source.truncate(0)
        self._source.seek(0)
        rest = memoryview(data)
        while rest:
            rest = rest[self._source.write(rest) :]

    def _receive(self, max_seconds: float, check: Callable[[], None]) -> tuple[bytes, list[int]]:
        deadline = time.monotonic() + max_seconds
        while True:
            try:
                answer, pixels, _, _ = socket.recv_fds(self._connection, LONGEST_MESSAGE_BYTES, 1)
            except TimeoutError:
                check()
                if time.monotonic() > deadline:
                    raise ImageError(
                        f"the image took longer than {max_seconds:g} s to decode (DG_DECODE_SECONDS): save it again"
                    ) from None
            else:
                if not answer:
                    raise ConnectionError
                self.is_at_work = False
                return answer, pixels

    def _read(self, answer: bytes, pixels: list[int], buffer: Buffer | None) -> DecodedImage:
        told = json.loads(answer)
        if "error" in told:
            raise ImageError(told["error"])
        if "out_of_memory" in told:
            limit = self._max_memory_bytes / 2**20
            raise ImageError(
                f"the image needs more memory to decode than {limit:.0f} MiB (DG_DECODE_MEMORY): scale it down"
            )
        memory = self._buffers.adopt(pixels[0]) if buffer is None or told["is_fresh"] else buffer.memory
        return DecodedImage(laid_over(memory, tuple(told["size"])), tuple(told["warnings"]))

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    # The package that runs here, wherever it was imported from.
    return kept | {"PYTHONPATH": str(Path(kontext.__file__).resolve().parents[1])}
