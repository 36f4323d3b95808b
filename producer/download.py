"""Outputs of jobs fetched into a folder: side by side, each whole or not at all, and only what is not there yet.

A file that was fetched has the time of its object, so that a later download knows it by size and time, as rsync does.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

from jobs.errors import SettingsError
from jobs.ledger.scripts import chunks
from producer.buckets import bucket_failures, http_status, open_client
from producer.files import local_path, replacing_bytes

THREADS = 8
FILES_AT_ONCE = 64
CHUNK_BYTES = 2**20
TRIES = 3
"""Of one file, when its bytes break off or are not those that the store has."""

MD5 = re.compile(r'"?([0-9a-f]{32})"?')
"""An ETag that is the object's MD5, unless the store encrypts it by a key of its own."""

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST_LINK_SECONDS = 7 * 86400
"""S3's own bound."""


@dataclass(frozen=True)
class Fetched:
    """An output and its file here. `problem` says why it has none; `was_there` is true of one from an earlier time."""

    uri: str
    path: Path
    was_there: bool = False
    problem: str = ""


class Broken(Exception):
    """Raised when the bytes that came are not those of the object; another try may do."""


class Downloader:
    """Fetches from `s3://`, by boto3's own settings (`AWS_*`), and from `file://` where this machine has the file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def fetch_all(self, uris: Iterable[str], folder: Path) -> Iterator[Fetched]:
        """Fetch outputs into a folder, in order; a name is what tells an output from the others.

        Raises:
            TableError: the folder cannot be written, or a store refuses or is away; what is there stays.
        """
        places = names_below(list(dict.fromkeys(uris)))
        with ThreadPoolExecutor(THREADS) as threads:
            for chunk in chunks(places.items(), FILES_AT_ONCE):
                yield from threads.map(lambda item: self.fetch(item[0], folder / item[1]), chunk)

    def fetch(self, uri: str, path: Path) -> Fetched:
        """Fetch one output to `path`, unless it is there.

        Raises:
            TableError: it cannot be written, or a store refuses or is away.
        """
        source = local_path(uri)
        if source is not None:
            return self._copy(uri, source, path)
        if not uri.startswith("s3://"):
            return Fetched(uri, path, problem="is neither in a bucket nor a file")
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with bucket_failures(uri, "cannot be fetched"):
            head = self._head(bucket, key)
            if head is None:
                return Fetched(uri, path, problem="is not there any more")
            if _is_there(path, head["ContentLength"], head["LastModified"].timestamp()):
                return Fetched(uri, path, was_there=True)
            return self._download(uri, path, bucket, key)

    def link(self, uri: str, seconds: int) -> str | None:
        """An address at which anybody may read the output for a while; None when it is not in a bucket.

        Raises:
            TableError: there are no credentials to sign with.
        """
        if not uri.startswith("s3://"):
            return None
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with bucket_failures(uri, "cannot be signed for"):
            return str(
                self._client.generate_presigned_url(
                    "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=seconds
                )
            )

    @cached_property
    def _shared_client(self) -> Any:
        return open_client()

    @property
    def _client(self) -> Any:
        with self._lock:  # several threads may want the first one
            return self._shared_client

    def _head(self, bucket: str, key: str) -> dict[str, Any] | None:
        try:
            return dict(self._client.head_object(Bucket=bucket, Key=key))
        except import_module("botocore.exceptions").ClientError as error:
            if http_status(error) == 404:
                return None
            raise

    def _download(self, uri: str, path: Path, bucket: str, key: str) -> Fetched:
        problem = ""
        for _ in range(TRIES):
            answer = self._client.get_object(Bucket=bucket, Key=key)
            modified = answer["LastModified"].timestamp()
            try:
                with closing(answer["Body"]) as body, replacing_bytes(path, modified) as file:
                    _receive(body, answer, file)
            except Broken as error:
                problem = f"came damaged: {error}"
            else:
                return Fetched(uri, path)
        return Fetched(uri, path, problem=problem)

    def _copy(self, uri: str, source: Path, path: Path) -> Fetched:
        try:
            status = source.stat()
            readable = source.open("rb")
        except OSError as error:
            said = f"lies on the worker's machine ({error.strerror}); let workers write to a bucket or a shared folder"
            return Fetched(uri, path, problem=said)
        with readable:
            is_same = path.exists() and path.samefile(source)
            if is_same or _is_there(path, status.st_size, status.st_mtime):
                return Fetched(uri, path, was_there=True)
            with replacing_bytes(path, status.st_mtime) as file:
                shutil.copyfileobj(readable, file)
        return Fetched(uri, path)


def names_below(uris: Sequence[str]) -> dict[str, Path]:
    """A relative path for each URI, no two the same: what follows the folder that all of them share."""
    parts = {uri: _parts(uri) for uri in uris}
    folders = [found[:-1] for found in parts.values()] or [[]]
    pairs = zip(min(folders), max(folders), strict=False)  # what these two share, all between them share
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return {uri: Path(*found[shared:]) for uri, found in parts.items()}


def link_seconds(text: str) -> int:
    """Seconds of a span such as `30m`, `24h` or `7d`.

    Raises:
        SettingsError: it is none, or longer than S3 signs for.
    """
    found = re.fullmatch(r"(\d{1,6})([smhd])", text.strip().lower())
    seconds = int(found[1]) * SECONDS[found[2]] if found else 0
    if not 1 <= seconds <= LONGEST_LINK_SECONDS:
        raise SettingsError(f"--links {text}: expected a time from 1s to 7d, such as 24h")
    return seconds


def _parts(uri: str) -> list[str]:
    """Scheme, bucket and names of a URI; none of them leads out of a folder."""
    scheme, _, rest = uri.partition("://")
    plain = unquote(rest) if scheme == "file" else rest
    return [scheme, *(f"_{name}" if name in ("", ".", "..") else name for name in plain.split("/"))]


def _is_there(path: Path, size: int, modified: float) -> bool:
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_size == size and int(status.st_mtime) == int(modified)


def _receive(body: Any, answer: dict[str, Any], file: IO[bytes]) -> None:
    """Write an object's bytes and compare them with what the store says of it.

    Raises:
        Broken: they are fewer, or others.
    """
    digest, size = hashlib.md5(usedforsecurity=False), 0
    for chunk in _chunks(body):
        digest.update(chunk)
        size += len(chunk)
        file.write(chunk)
    if size != answer["ContentLength"]:
        raise Broken(f"{size} of {answer['ContentLength']} bytes")
    expected = MD5.fullmatch(answer.get("ETag", ""))
    if expected and answer.get("ServerSideEncryption", "AES256") == "AES256" and digest.hexdigest() != expected[1]:
        raise Broken("its checksum is another")


def _chunks(body: Any) -> Iterator[bytes]:
    broken = import_module("botocore.exceptions").BotoCoreError, import_module("urllib3.exceptions").HTTPError, OSError
    try:
        yield from body.iter_chunks(CHUNK_BYTES)
    except broken as error:
        raise Broken(str(error)) from error
