"""Local files: the paths of `file://` URIs, and files written all at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import TextIOWrapper
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from producer.errors import TableError


def name_output(uri: str, folder: Path) -> str:
    """Output path relative to `folder`; an absolute path outside it, and the URI itself when it names no file."""
    if not uri.startswith("file://"):
        return uri
    path, root = _path_of(uri), _resolved(folder.absolute())
    return path.removeprefix(root) if path.startswith(root) else path


def local_path(uri: str) -> Path | None:
    """The path of a `file://` URI; None for every other URI."""
    return Path(_path_of(uri)) if uri.startswith("file://") else None


def _path_of(uri: str) -> str:
    return unquote(urlsplit(uri).path)


@cache
def _resolved(folder: Path) -> str:
    """The folder without links, with a slash at its end; a report asks for the same one by the thousand."""
    return f"{str(folder.resolve()).rstrip('/')}/"


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a new text file that replaces `path` once it is complete.

    Raises:
        TableError: it cannot be written.
    """
    with replacing_bytes(path) as binary, TextIOWrapper(binary, encoding="utf-8", newline="") as file:
        yield file


@contextmanager
def replacing_bytes(path: Path, modified: float | None = None) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` once it is complete.

    Args:
        modified: its time of change, in seconds since 1970; None: now.
    Raises:
        TableError: it cannot be written.
    """
    with naming_what_is_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
            os.chmod(name, 0o644)  # mkstemp makes it private
            if modified is not None:
                os.utime(name, (modified, modified))
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise


@contextmanager
def naming_what_is_written(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one line that names the path.

    Raises:
        TableError: the block raised OSError.
    """
    try:
        yield
    except OSError as error:
        raise TableError(f"{path}: cannot be written ({error.strerror or error}); choose another path") from error
