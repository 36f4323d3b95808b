"""One process at a time prepares; the kernel lets go of the lock however that process ends."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

POLL_SECONDS = 0.25
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL)  # network file systems


def lock(path: Path, wait_seconds: float) -> int | None:
    """Lock a file, which is made if it is not there.

    Args:
        wait_seconds: how long to wait for another process that holds it.
    Returns:
        The descriptor that holds the lock until it is closed; None when the wait was in vain.
    Raises:
        OSError: the file cannot be opened for writing.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    give_up_at = time.monotonic() + wait_seconds
    while not _try(descriptor):
        if time.monotonic() >= give_up_at:
            os.close(descriptor)
            return None
        time.sleep(POLL_SECONDS)
    return descriptor


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            os.close(descriptor)
            raise
        # Better two that prepare than none: what they write is there at once or not at all.
    return True
