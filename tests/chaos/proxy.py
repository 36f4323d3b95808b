"""A TCP proxy whose connections can be cut, frozen, slowed, half closed or forgotten: a network to break.

It works on bytes and knows nothing of what passes, so it stands in front of Redis and of the store alike.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock, Thread

CHUNK_BYTES = 65536
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # linger on, for no time: the other side gets RST instead of FIN


@dataclass(eq=False)
class Connection:
    """One client's way through: two sockets, each with a thread that carries its bytes to the other."""

    client: socket.socket
    server: socket.socket
    is_forgotten: bool = False

    def reset(self) -> None:
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                side.shutdown(socket.SHUT_RDWR)
            side.close()


class TcpProxy:
    """Passes connections on to `target` until it is told otherwise."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lock = Lock()
        self._connections: list[Connection] = []
        self._flows = Event()
        self._flows.set()
        self._is_cut = False
        self._bytes_until_cut: int | None = None
        self.delay_seconds = 0.0
        """How long each piece is held up, in either direction."""
        Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        self._is_cut = True
        self._flows.set()
        for connection in self._take_all():
            connection.reset()

    def freeze(self) -> None:
        """Let nothing through; connections stay open, and what is sent waits."""
        self._flows.clear()

    def half_close(self) -> None:
        """Say to every client that its server has nothing more to say; what clients send still arrives."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.client.shutdown(socket.SHUT_WR)

    def forget(self) -> None:
        """Swallow everything on the present connections without closing them, as a firewall that lost its table."""
        with self._lock:
            for connection in self._connections:
                connection.is_forgotten = True

    def cut_after(self, sent_bytes: int) -> None:
        """Reset the next connection whose client has sent this many bytes more."""
        self._bytes_until_cut = sent_bytes

    @property
    def will_cut(self) -> bool:
        """Whether what `cut_after` asked for is still to come."""
        return self._bytes_until_cut is not None

    def mend(self) -> None:
        """Pass everything on again."""
        self._is_cut, self._bytes_until_cut, self.delay_seconds = False, None, 0.0
        self._flows.set()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        try:
            if self._is_cut:
                raise ConnectionRefusedError
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        connection = Connection(client, server)
        with self._lock:
            self._connections.append(connection)
        for source, sink in ((client, server), (server, client)):
            Thread(target=self._carry, args=(connection, source, sink), daemon=True).start()

    def _carry(self, connection: Connection, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may go at any time
            while data := source.recv(CHUNK_BYTES):
                self._flows.wait()
                if self.delay_seconds:
                    time.sleep(self.delay_seconds)
                if source is connection.client and self._is_used_up(len(data)):
                    connection.reset()
                if not connection.is_forgotten:
                    sink.sendall(data)
        if not connection.is_forgotten:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _is_used_up(self, size: int) -> bool:
        with self._lock:
            if self._bytes_until_cut is None:
                return False
            self._bytes_until_cut -= size
            if self._bytes_until_cut > 0:
                return False
            self._bytes_until_cut = None
            return True

    def _take_all(self) -> list[Connection]:
        with self._lock:
            taken, self._connections = self._connections, []
            return taken


@contextmanager
def tcp_proxy(host: str, port: int) -> Iterator[TcpProxy]:
    """A proxy that runs inside the `with` block."""
    proxy = TcpProxy((host, port))
    try:
        yield proxy
    finally:
        proxy.close()
