"""Folders whose files only we, or the system's administrator, can have written.

Compiled code is run as it lies there. So a folder and its files must belong to this process's user or to root, and
nobody else may have the right to write them; where the folder stands does not matter then.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from kontext.errors import KontextError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


class NotPrivate(KontextError):
    """Raised when a folder or a file in it may be somebody else's work; the message says of what and why."""


class PrivateFolder:
    """A folder held open, so that what was checked is what is read; a context.

    Raises:
        FileNotFoundError: there is no such folder.
        NotPrivate: others can have written in it.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check(os.fstat(self._descriptor), path)
        except NotPrivate:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> PrivateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, name: str, most_bytes: int) -> bytes:
        """The content of a file in the folder.

        Args:
            most_bytes: a longer file is not read to its end; what is returned then has one byte more than this.
        Raises:
            NotPrivate: others can have written it, or it is no plain file.
            OSError: it cannot be opened.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a named pipe must not hold us
        with open(os.open(name, flags, dir_fd=self._descriptor), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise NotPrivate(f"{self._path / name} is no plain file")
            _check(found, self._path / name)
            return file.read(most_bytes + 1)


def _check(found: os.stat_result, path: Path) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise NotPrivate(f"{path} belongs to user {found.st_uid}, neither to us ({os.geteuid()}) nor to root")
    if found.st_mode & WRITABLE_BY_OTHERS:
        mode = stat.S_IMODE(found.st_mode)
        raise NotPrivate(f"{path} may be written by others (mode {mode:o}); take that right away (chmod go-w)")


def write_private(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a folder with these files at once; an earlier one of ours gives way. One process does so at a time.

    Raises:
        OSError: it cannot be written, or what lies there is not ours to remove.
    """
    for left in path.parent.glob(f".{path.name}-*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))  # for us alone
    try:
        for name, content in contents.items():
            with open(os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if path.exists():
            shutil.rmtree(path)
        made.rename(path)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise
