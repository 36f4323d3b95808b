"""The health file: the worker's state, rewritten every second and read by `worker health` for probes.

A file rather than a port: it needs no network, and a worker whose threads no longer run leaves it stale. Liveness never
depends on Redis; readiness does. Nor does it need free space: the file is allocated once and overwritten in place.

The folder must belong to the worker's user, and nobody else may write to it: its default name can be guessed, and
another user's link there would redirect what the worker writes.

Probes ask several times a minute beside a worker that needs its processor: this module and what it imports load
neither the settings nor any library.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock

from jobs.errors import SettingsError
from jobs.worker_state import WorkerState

log = logging.getLogger(__name__)

RUNTIME_DIR = "DG_RUNTIME_DIR"
STALE_SECONDS = 15.0
REDIS_SILENT_SECONDS = 30.0
RECORD_BYTES = 4096
"""Size of a health file, whatever it says: a block that is allocated once."""

LONGEST_DETAIL = 400
"""Characters, each of which JSON may write with six bytes."""

UNKNOWN_PID = 0
NO_ROOM = "its disk has no room for its health file, so its state is not known"
"""Of a worker that was started on a full disk: the file is empty, and only its time says that the worker lives."""

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Health:
    """One worker's state at a moment; times are seconds since 1970."""

    name: str
    pid: int
    state: WorkerState
    written_at: float
    redis_seen_at: float
    detail: str = ""
    untaken: str = ""
    """What `worker/untaken.py` says of messages that this worker should take and does not."""

    def why_not_live(self, now: float) -> str | None:
        """What says that the process should be restarted; None when it is fine."""
        if now - self.written_at > STALE_SECONDS:
            return f"silent for {now - self.written_at:.0f} s"
        if self.state in (WorkerState.STUCK, WorkerState.BROKEN):
            return self._in_words()
        return None

    def why_not_ready(self, now: float) -> str | None:
        """What says that the worker takes no jobs now; None when it does."""
        if reason := self.why_not_live(now):
            return reason
        if self.state not in (WorkerState.READY, WorkerState.BUSY):
            return self._in_words()
        if not self.redis_seen_at:
            return "Redis has not answered yet"
        if now - self.redis_seen_at > REDIS_SILENT_SECONDS:
            return f"Redis has not answered for {now - self.redis_seen_at:.0f} s"
        return self.untaken or None

    def _in_words(self) -> str:
        return f"{self.state}: {self.detail}".rstrip(": ")


class HealthFile:
    """The health files of the workers on this machine, one per worker name."""

    def __init__(self, runtime_dir: Path, name: str) -> None:
        """Prepare the folder; a disk without space does not matter yet.

        Raises:
            SettingsError: the folder cannot be made, or others may write to it.
        """
        self._path = runtime_dir / f"{name.replace('/', '_')}.json"
        self._lock = Lock()  # several threads write
        self._file: int | None = None
        self._is_failing = False
        try:
            _prepare(runtime_dir)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise SettingsError(f"DG_RUNTIME_DIR={runtime_dir}: {error.strerror}; name another folder") from error

    def write(self, health: Health) -> None:
        """Record the state. A file that cannot be written is logged once and tried again with the next state."""
        words = json.dumps(asdict(replace(health, detail=health.detail[:LONGEST_DETAIL])))
        with self._lock:
            try:
                self._overwrite(words.encode().ljust(RECORD_BYTES))
            except (OSError, SettingsError) as error:
                if not self._is_failing:
                    log.warning("health_not_written file=%s reason=%s", self._path, error)
                self._is_failing = True
            else:
                self._is_failing = False

    def remove(self) -> None:
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            self._path.unlink(missing_ok=True)

    def _overwrite(self, record: bytes) -> None:
        if self._file is None or not os.fstat(self._file).st_nlink:  # somebody has tidied the folder up
            self._file = self._reopened()
        try:
            os.pwrite(self._file, record, 0)
        except OSError:
            # A file system that writes blocks elsewhere found no space: the time of the last sign of life needs none.
            os.utime(self._file)
            raise

    def _reopened(self) -> int:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        _prepare(self._path.parent)
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)


def _prepare(folder: Path) -> None:
    """Make the folder, or check that it is ours alone to write to.

    Raises:
        SettingsError: it is not.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    remedy = "remove it, or name a folder inside of it in DG_RUNTIME_DIR"
    status, us = folder.stat(), os.geteuid()
    if (link := folder.lstat()).st_uid not in (us, 0) or status.st_uid != us:
        owner = status.st_uid if status.st_uid != us else link.st_uid
        raise SettingsError(f"{folder} belongs to user {owner}, not to {us}: {remedy}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(f"others may write to {folder} (mode {stat.S_IMODE(status.st_mode):o}): {remedy}")


def read_health(runtime_dir: Path) -> list[Health]:
    """Read the words of all workers on this machine, without those whose process has ended."""
    found = []
    for path in sorted(runtime_dir.glob("*.json")):
        try:
            health = _read(path)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # removed while reading, or not a health file
        if health.pid == UNKNOWN_PID or _is_running(health.pid):
            found.append(health)
    return found


def _read(path: Path) -> Health:
    """Read one health file: no link, and no pipe that would wait for a writer.

    Raises:
        OSError, ValueError, TypeError, KeyError: it is none.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if stat.S_ISREG(status.st_mode) and not status.st_size:
            return Health(path.stem, UNKNOWN_PID, WorkerState.LOADING, status.st_mtime, 0.0, NO_ROOM)
        for is_last in (False, False, True):  # one that is overwritten meanwhile may be read half old, half new
            try:
                fields = json.loads(os.pread(file, RECORD_BYTES, 0))
                break
            except ValueError:
                if is_last:
                    raise
        signs_of_life = fields["written_at"], os.fstat(file).st_mtime
    finally:
        os.close(file)
    return Health(**{**fields, "state": WorkerState(fields["state"]), "written_at": max(signs_of_life)})


def answer_probe(runtime_dir: Path, *, live: bool = False, ready: bool = False, name: str | None = None) -> int:
    """Print the state of each worker on this machine, one JSON object a line.

    Args:
        live, ready: the question; with neither, every worker that runs is well.
        name: the one worker to ask; None asks all.
    Returns:
        Exit code of `worker health`: 0 when all are well, 1 otherwise and when there is none.
    """
    now = time.time()
    found = [health for health in read_health(runtime_dir) if name in (None, health.name)]
    if not found:
        print(f"no worker is running (no health file in {runtime_dir})", file=sys.stderr)  # noqa: T201 - a command's words
        return 1
    reasons = [_reason(health, now, live, ready) for health in found]
    for health, reason in zip(found, reasons, strict=True):
        said = {"name": health.name, "pid": health.pid, "state": health.state, "reason": reason}
        print(json.dumps(said))  # noqa: T201 - a command's answer
    return 0 if reasons.count(None) == len(reasons) else 1


def default_runtime_dir() -> Path:
    """Folder of the health files when `DG_RUNTIME_DIR` is not set."""
    return Path(tempfile.gettempdir()) / f"kontext-edits-{os.getuid()}"


def find_runtime_dir(environment: Mapping[str, str]) -> Path:
    """Folder of the health files by `DG_RUNTIME_DIR` in the environment or `.env`, as the worker's settings read it."""
    given = _value_of(RUNTIME_DIR, environment)
    if not given and Path(".env").exists():
        from dotenv import dotenv_values

        given = _value_of(RUNTIME_DIR, dotenv_values(".env"))
    return Path(given) if given else default_runtime_dir()


def _value_of(variable: str, variables: Mapping[str, str | None]) -> str | None:
    return next((value for name, value in variables.items() if name.upper() == variable), None)


def _reason(health: Health, now: float, live: bool, ready: bool) -> str | None:
    return health.why_not_ready(now) if ready else health.why_not_live(now) if live else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
