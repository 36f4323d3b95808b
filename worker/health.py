"""The health file: the worker's state, rewritten every second and read by `worker health` for probes.

A file rather than a port: it needs no network, and a worker whose threads no longer run leaves it stale. Liveness never
depends on Redis; readiness does.

Probes ask several times a minute beside a worker that needs its processor: this module and what it imports load
neither the settings nor any library.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import get_ident

from jobs.worker_state import WorkerState

RUNTIME_DIR = "DG_RUNTIME_DIR"
STALE_SECONDS = 15.0
REDIS_SILENT_SECONDS = 30.0


@dataclass(frozen=True)
class Health:
    """One worker's state at a moment; times are seconds since 1970."""

    name: str
    pid: int
    state: WorkerState
    written_at: float
    redis_seen_at: float
    detail: str = ""

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
        if now - self.redis_seen_at > REDIS_SILENT_SECONDS:
            return f"Redis has not answered for {now - self.redis_seen_at:.0f} s"
        return None

    def _in_words(self) -> str:
        return f"{self.state}: {self.detail}".rstrip(": ")


class HealthFile:
    """The health files of the workers on this machine, one per worker name."""

    def __init__(self, runtime_dir: Path, name: str) -> None:
        self._path = runtime_dir / f"{name.replace('/', '_')}.json"

    def write(self, health: Health) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{get_ident()}.tmp")  # several threads write
        temporary.write_text(json.dumps(asdict(health)))
        temporary.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def read_health(runtime_dir: Path) -> list[Health]:
    """Read the words of all workers on this machine, without those whose process has ended."""
    found = []
    for path in sorted(runtime_dir.glob("*.json")):
        try:
            fields = json.loads(path.read_text())
            health = Health(**{**fields, "state": WorkerState(fields["state"])})
        except (OSError, ValueError, TypeError, KeyError):
            continue  # replaced or removed while reading, or not a health file
        if _is_running(health.pid):
            found.append(health)
    return found


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
