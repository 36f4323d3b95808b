"""A server below HTTP: the test writes what goes over the connection, for answers that no HTTP server gives."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Script = Callable[[socket.socket, threading.Event], None]
"""Plays one connection; the event is set when the server closes."""

DRIP_SECONDS = 0.01


@contextmanager
def raw_server(
    script: Script,
    certificate: ssl.SSLContext | None = None,
    *,
    reads_head: bool = True,
    address: str = "127.0.0.1",
) -> Iterator[int]:
    """A server on a loopback address that plays the script for each connection; yields its port.

    Args:
        reads_head: the request is read before the script begins; otherwise the script does it.
    """
    closing = threading.Event()
    with socket.create_server((address, 0), backlog=128) as listener:

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


def by_path(scripts: Mapping[str, Script]) -> Script:
    """Read the request, then play the script for the path that it asks for, as it was sent."""

    def script(connection: socket.socket, closing: threading.Event) -> None:
        path = [*read_head(connection).split(b" ", 2), b""][1].decode("latin-1")
        scripts.get(path, sends(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))(connection, closing)

    return script


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
