"""Inputs that were downloaded before, kept in a folder of this machine."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from storage.files import write_whole
from storage.store import Source


class Cached(Source):
    """A source whose inputs are kept by a hash of their whole URI; nothing is ever asked for twice, nor removed.

    Only whole inputs are kept. A folder that cannot be read or written costs the download, never the job.

    Args:
        folder: made when it is missing; several processes may share it.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self._source = source
        self._folder = folder

    def read(self, uri: str) -> bytes:
        path = self._folder / hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()
        with contextlib.suppress(OSError):
            return path.read_bytes()
        data = self._source.read(uri)
        with contextlib.suppress(OSError):
            self._keep(path, data)
        return data

    def close(self) -> None:
        self._source.close()

    def _keep(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(str(path), data, mode=0o600)
