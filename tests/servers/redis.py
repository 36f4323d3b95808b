"""A real Redis on a free TCP port, with an append-only file as in production: to kill, freeze and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from producer.embedded.private_redis import HOW_TO_INSTALL, find_redis_server
from tests.requirements import require
from tests.servers.fake_clock import FakeClock
from tests.waiting import PATIENCE_SECONDS, eventually


class RedisServer:
    """One Redis with its data in `folder`; it keeps port and data over `kill` and `start`.

    Args:
        login: `name:password` with which the tests' own clients come in.
        clock: a clock for it that a test can set; None is the machine's.
        binary: the program; None is the one that the product would start.
        options: what its configuration has besides, or instead.
    """

    def __init__(
        self,
        folder: Path,
        login: str = "",
        clock: FakeClock | None = None,
        binary: Path | None = None,
        **options: str | int | Path,
    ) -> None:
        self.folder = folder
        self._binary = binary
        self.clock = clock
        self.port = free_port()
        self.url = self.url_of(login)
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the data that is there, and wait until it answers."""
        binary = self._binary or find_redis_server()
        require(binary, HOW_TO_INSTALL)
        options = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self.folder,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "logfile": self.folder / "redis.log",
            **self._options,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        environment = {**os.environ, **(self.clock.environment if self.clock else {})}
        self._process = subprocess.Popen([str(binary), *words], stdin=subprocess.DEVNULL, env=environment)
        eventually(self._answers, what=f"Redis answers at {self.url}, see {self.folder}/redis.log")

    def url_of(self, login: str) -> str:
        """Its address for somebody who comes in as `name:password`."""
        return f"redis://{login}{'@' if login else ''}127.0.0.1:{self.port}/0"

    def kill(self) -> None:
        """Kill it as the kernel would (SIGKILL): nothing is flushed, connections drop."""
        self._signal(signal.SIGKILL)
        self._running().wait()
        self._process = None

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, whatever state a test left it in."""
        if self._process is not None:
            self.kill()

    def client(self, *, decode_responses: bool = True) -> redis.Redis:
        """A new client; whoever asks for it closes it."""
        return redis.Redis.from_url(self.url, decode_responses=decode_responses, socket_timeout=PATIENCE_SECONDS)

    def _answers(self) -> bool:
        if (code := self._running().poll()) is not None:
            raise RuntimeError(f"redis-server ended with code {code}, see {self.folder}/redis.log")
        try:
            with self.client() as client:
                return bool(client.ping())
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):  # the latter while it loads much
            return False

    def _signal(self, number: int) -> None:
        self._running().send_signal(number)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("this Redis is not running; call start()")
        return self._process


@contextmanager
def running_redis(
    folder: Path,
    login: str = "",
    clock: FakeClock | None = None,
    binary: Path | None = None,
    **options: str | int | Path,
) -> Iterator[RedisServer]:
    """A Redis that runs inside the `with` block, its data in `folder`."""
    server = RedisServer(folder, login, clock, binary, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
