"""A server below HTTP: the test writes what goes over the connection, for answers that no HTTP server gives."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket, threading.Event], None]
"""Plays one connection; the event is set when the server closes."""

DRIP_SECONDS = 0.01


@contextmanager
def raw_server(script: Script, certificate: ssl.SSLContext | None = None, *, reads_head: bool = True) -> Iterator[int]:
    """A server on the loopback address that plays the script for each connection; yields its port.

    Args:
        reads_head: the request is read before the script begins; otherwise the script does it.
    """
    closing = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def play(connection: socket.socket) -> None:
            # Clients that hang up or refuse the certificate are what tests are about.
            with contextlib.suppress(OSError), contextlib.closing(connection):
                secured = certificate.wrap_socket(connection, server_side=True) if certificate else connection
                with contextlib.closing(secured):
                    if reads_head:
                        read_head(secured)
                    script(secured, closing)

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listener was shut down
                while True:
                    connection, _ = listener.accept()
                    connection.settimeout(10)
                    thread = threading.Thread(target=play, args=(connection,))
                    thread.start()
                    players.append(thread)

        players: list[threading.Thread] = []
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            closing.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in [accepting, *players]:
                thread.join()


def read_head(connection: socket.socket) -> bytes:
    """Read a request's first line and headers, with what came along of its body."""
    received = b""
    while b"\r\n\r\n" not in received and (more := connection.recv(65536)):
        received += more
    return received


def sends(*parts: bytes) -> Script:
    """Send these and close."""
    return lambda connection, closing: connection.sendall(b"".join(parts))


def drips(head: bytes, drop: bytes = b"x") -> Script:
    """Send the head, then the drop again and again, without end and never long apart."""

    def script(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        while not closing.wait(DRIP_SECONDS):
            connection.sendall(drop)

    return script


def breaks_off(head: bytes) -> Script:
    """Send the head, then cut the connection as a crashed machine's kernel does (RST, no FIN)."""

    def script(connection: socket.socket, closing: threading.Event) -> None:
        connection.sendall(head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return script
