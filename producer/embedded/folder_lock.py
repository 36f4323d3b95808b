"""One run at a time in one folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from producer.errors import TableError


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold the folder for the length of a block; the kernel lets go of it however this process ends.

    Raises:
        TableError: another process holds it.
    """
    holder = hold(folder)
    if holder is None:
        raise TableError(f"{folder}: another producer run is at work there; wait for its end, or name another folder")
    try:
        yield
    finally:
        os.close(holder)


def hold(folder: Path) -> int | None:
    """Lock a folder itself, so that no file tells of it; None when another process holds it.

    Returns:
        The descriptor that holds the lock until it is closed.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
            os.close(descriptor)
            raise  # otherwise a network file system that locks no folders: better a run without than none
    return descriptor
