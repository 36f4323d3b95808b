"""`file://`: folders of the machine that the worker runs on, as far as `DG_FILE_ROOTS` opens them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from jobs.errors import EditFailure, Outage, RejectJob
from storage.limits import too_large
from storage.settings import StorageSettings
from storage.store import INPUT, OUTPUT, Content, Side, Store
from storage.transfer import check_not_left
from storage.uris import scheme_of, show_uri

MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EEXIST}
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}


class Files(Store):
    """Reads below `DG_FILE_ROOTS`; writes there and below `DG_OUTPUT_URI`."""

    def __init__(self, settings: StorageSettings) -> None:
        self._max_bytes = settings.max_input_bytes
        self._readable = [os.path.realpath(root) for root in settings.file_roots]
        self._writable = list(self._readable)
        if scheme_of(settings.output_uri) == "file":
            self._writable.append(os.path.realpath(_path(settings.output_uri, OUTPUT)))

    def read(self, uri: str) -> bytes:
        path = _allowed_path(uri, self._readable, INPUT)
        try:
            return self._read_regular(path, uri)
        except OSError as error:
            raise _failure(error, uri, INPUT) from error

    def publish(self, uri: str, data: Content, content_type: str) -> None:
        path = _allowed_path(uri, self._writable, OUTPUT)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise _failure(error, uri, OUTPUT) from error

    def check_output(self, uri: str) -> None:
        path = _allowed_path(uri, self._writable, OUTPUT)
        try:
            _check_writable(path)
        except OSError as error:
            raise _failure(error, uri, OUTPUT) from error

    def _read_regular(self, path: str, uri: str) -> bytes:
        # Without O_NONBLOCK the open of a pipe waits for a writer. The path has no links any more; O_NOFOLLOW keeps out
        # one that was put there since.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise RejectJob(INPUT.forbidden, f"{show_uri(uri)}: not a regular file; name a picture file")
            if status.st_size > self._max_bytes:
                raise too_large(uri, status.st_size, self._max_bytes)
            data = file.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise too_large(uri, f"more than {self._max_bytes}", self._max_bytes)
        return data


def _allowed_path(uri: str, roots: Sequence[str], side: Side) -> str:
    """The path without links, below one of the roots."""
    path = os.path.realpath(_path(uri, side))
    if not any(path != root and os.path.commonpath([path, root]) == root for root in roots):
        raise RejectJob(
            side.forbidden,
            f"{show_uri(uri)}: not below an allowed folder",
            "add its folder to DG_FILE_ROOTS where the worker runs "
            "(`worker check` lists them there)",  # and nobody else: this message goes to whoever sent the job
        )
    return path


def _path(uri: str, side: Side) -> str:
    # Not urlsplit: in a hand-written `file://` URI, `?` and `#` are characters of the file name.
    host, slash, path = uri[len("file://") :].partition("/")
    if host.lower() not in ("", "localhost"):
        raise RejectJob(side.forbidden, f"{show_uri(uri)}: names the host {host!r}; expected file:///absolute/path")
    decoded = os.fsdecode(unquote_to_bytes(slash + path))
    if "\0" in decoded:
        raise RejectJob(side.forbidden, f"{show_uri(uri)}: has a null byte, which no file name has")
    return decoded or "/"


def write_whole(path: str, data: Content, mode: int = 0o666) -> None:
    """Write all data, then link the name: the name never refers to half a picture.

    Where the file system can, the file has no name while it is written, and a killed process leaves nothing. Elsewhere
    (NFS, macOS) it leaves a hidden file that ends in `.part`.
    """
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".{uuid4().hex}.part")
    try:
        with _open_for_writing(folder, temporary, mode) as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                data.seek(0)
                shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())
            check_not_left()  # its job may have ended otherwise meanwhile
            if not os.path.lexists(temporary):
                # Only with a folder's descriptor, here without meaning, Python asks the kernel to follow the link.
                os.link(f"/proc/self/fd/{file.fileno()}", temporary, src_dir_fd=file.fileno(), follow_symlinks=True)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _open_for_writing(folder: str, temporary: str, mode: int) -> BinaryIO:
    """A new file in `folder`: without a name where that is possible, otherwise named `temporary`."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        try:
            return open(os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode), "wb")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
    return open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode), "wb")


def _sync_folder(folder: str) -> None:
    """Make the new name last through a power failure, before the job is reported as done."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Some network file systems cannot do this to a folder; the picture is published all the same.
        with contextlib.suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)


def _check_writable(path: str) -> None:
    """Raise the OSError that writing would meet; looks at the nearest folder that exists, and makes none."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "it is a folder")
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"user {os.geteuid()} may not write to {folder}")


def _failure(error: OSError, uri: str, side: Side) -> EditFailure:
    message = f"{show_uri(uri)}: {error.strerror or error}"
    if error.errno in MISSING:
        return RejectJob(side.not_found, message, "name a path that exists where the worker runs")
    if error.errno in REFUSED:
        return RejectJob(side.forbidden, message, f"check the path and the rights of the worker's user {os.geteuid()}")
    return Outage(side.unavailable, f"{message}; a later try may do")
