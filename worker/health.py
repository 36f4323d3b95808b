"""How a worker says how it is: a file that it rewrites every second, read by `worker health` for probes.

A file rather than a port: it needs no network, and a worker whose threads no longer run leaves it stale. Liveness never
depends on Redis; readiness does.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import get_ident

from jobs.registry import WorkerState

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


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
