"""LoRA files of jobs: fetched within the limits of inputs, kept in a bounded folder under their hash.

A file is in use from its fetch to the end of its job and is not removed meanwhile, by whichever worker of this machine:
a shared lock of the operating system says so, which a killed worker loses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from jobs.errors import ErrorCode, RejectJob, RetryJob
from jobs.schema import AppliedLora
from jobs.schema import Lora as LoraOfJob
from kontext import CheckpointError, Lora
from kontext.weights.header import read_header
from storage import Storage
from storage.uris import scheme_of, show_uri
from worker.settings import Settings

FRESH_SECONDS = 300.0
"""How long a download is taken for what its URI holds; a file of this machine is looked at for every job."""

LEFT_SECONDS = 60.0
"""A half-written file that nobody has locked and that has not grown for so long is what a killed worker left."""

HUB = "https://huggingface.co"
SUFFIX = ".safetensors"


class FetchedLora:
    """A LoRA file that stays where it is as long as this object lives."""

    def __init__(self, lora: LoraOfJob, path: Path, descriptor: int) -> None:
        self.for_engine = Lora(path, lora.scale, name=show_uri(lora.uri))
        self.applied = AppliedLora(sha256=path.stem, scale=lora.scale)
        weakref.finalize(self, os.close, descriptor)


class LoraStore:
    """Fetches LoRAs of jobs; threads may share one, and processes its folder."""

    def __init__(self, settings: Settings) -> None:
        limits = {"max_input_bytes": settings.max_lora_bytes, "input_cache_dir": None}
        self._storage = Storage(settings.model_copy(update=limits))
        self._max_bytes = settings.max_lora_bytes
        self._folder = settings.lora_cache_dir
        self._limit_bytes = settings.lora_cache_bytes
        self._fresh: dict[tuple[str | None, str], tuple[str, float]] = {}
        """Hash of what a URI held for a store profile, and when; what one may read, another need not."""

    def fetch(
        self, lora: LoraOfJob, check: Callable[[], None], profile: str | None = None, tenant: str | None = None
    ) -> FetchedLora:
        """The file of a job's LoRA, from the folder or from its URI.

        Args:
            profile, tenant: of the job, which decide what it may read.
            check: called before a download; what it raises ends the fetch.
        Raises:
            RejectJob: it cannot be had as it is: not there, forbidden, too large, no safetensors file.
            RetryJob, Outage: its server does not answer, or the folder cannot be written.
        """
        storage = self._storage.of_profile(profile, tenant)
        name, fetched_at = self._fresh.get((profile, lora.uri), ("", 0.0))
        if name and time.monotonic() - fetched_at < FRESH_SECONDS and (held := self._hold(lora, name)):
            return held
        check()
        data = self._read(storage, lora.uri)
        name = hashlib.sha256(data).hexdigest()
        try:
            held = self._hold(lora, name) or self._hold(lora, self._keep(name, data, lora.uri))
        except OSError as error:
            raise RetryJob(
                ErrorCode.INTERNAL, f"DG_LORA_CACHE_DIR: {error.strerror or error}; make the worker's folder writable"
            ) from error
        if held is None:
            raise RetryJob(
                ErrorCode.INTERNAL, f"{show_uri(lora.uri)}: removed from DG_LORA_CACHE_DIR while it was kept"
            )
        if scheme_of(lora.uri) != "file":
            self._note((profile, lora.uri), name)
        return held

    def close(self) -> None:
        self._storage.close()

    def _note(self, asked: tuple[str | None, str], name: str) -> None:
        now = time.monotonic()
        lasting = {known: kept for known, kept in self._fresh.items() if now - kept[1] < FRESH_SECONDS}
        self._fresh = lasting | {asked: (name, now)}

    def _read(self, storage: Storage, uri: str) -> bytes:
        try:
            return storage.read(web_address(uri))
        except RejectJob as error:
            if error.code is ErrorCode.INPUT_TOO_LARGE:
                too_large = f"{show_uri(uri)}: larger than DG_MAX_LORA_BYTES, {self._max_bytes}"
                raise RejectJob(error.code, too_large, "send a smaller LoRA or raise it") from error
            raise

    def _hold(self, lora: LoraOfJob, name: str) -> FetchedLora | None:
        """The file of that hash with its lock, marked as just used; None when it is not there."""
        path = self._folder / f"{name}{SUFFIX}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        held = FetchedLora(lora, path, descriptor)
        if not path.exists():  # removed between opening and locking
            return None
        os.utime(path)
        return held

    def _keep(self, name: str, data: bytes, uri: str) -> str:
        """Put a checked file into the folder and remove what was not used for longest."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(prefix=".", suffix=SUFFIX, dir=self._folder)
        try:
            with os.fdopen(handle, "wb") as file:
                fcntl.flock(handle, fcntl.LOCK_EX)  # until it has its name: whoever finds it unlocked may remove it
                file.write(data)
                file.flush()
                _check_form(Path(temporary), uri)
                self._make_room()
                os.replace(temporary, self._folder / f"{name}{SUFFIX}")
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        return name

    def _make_room(self) -> None:
        """Remove what killed workers left half written, then what was not used for longest, down to the limit."""
        kept = sorted((status.st_mtime, status.st_size, path) for path, status in _files(self._folder))
        total = sum(size for _, size, _ in kept)
        left_before = time.time() - LEFT_SECONDS
        for used_at, size, path in sorted(kept, key=lambda file: not _is_half_written(file[2])):
            is_left = _is_half_written(path) and used_at < left_before
            if (is_left or (total > self._limit_bytes and not _is_half_written(path))) and _remove_unless_in_use(path):
                total -= size


def web_address(uri: str) -> str:
    """The address behind `hf://owner/repository[@revision]/path`; other URIs as they are.

    No token is sent: whoever names a job's LoRA must not read the operator's private repositories.
    """
    if scheme_of(uri) != "hf":
        return uri
    owner, repository, path = uri[len("hf://") :].split("/", 2)
    repository, _, revision = repository.partition("@")
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    return f"{hub}/{quote(owner)}/{quote(repository)}/resolve/{quote(revision or 'main', safe='')}/{quote(path)}"


def _check_form(path: Path, uri: str) -> None:
    try:
        read_header(path)
    except CheckpointError as error:
        raise RejectJob(ErrorCode.INVALID_JOB, f"LoRA {show_uri(uri)} {str(error).removeprefix(f'{path} ')}") from error


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.glob(f"*{SUFFIX}"):  # hidden ones too
        with suppress(OSError):  # removed by another worker
            found.append((path, path.stat()))
    return found


def _is_half_written(path: Path) -> bool:
    return path.name.startswith(".")


def _remove_unless_in_use(path: Path) -> bool:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
        finally:
            os.close(descriptor)
    return False
