"""Local files: the paths of `file://` URIs, and files written all at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from producer.errors import TableError


def name_output(uri: str, folder: Path) -> str:
    """Output path relative to `folder`; an absolute path outside it, and the URI itself when it names no file."""
    path = local_path(uri)
    if path is None:
        return uri
    root = folder.resolve()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def local_path(uri: str) -> Path | None:
    """The path of a `file://` URI; None for every other URI."""
    return Path(unquote(urlsplit(uri).path)) if uri.startswith("file://") else None


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """Open a new file that replaces `path` once it is complete.

    Raises:
        TableError: it cannot be written.
    """
    with naming_what_is_written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                yield file
            os.chmod(name, 0o644)  # mkstemp makes it private
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
