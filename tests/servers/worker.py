"""Real worker processes, to be killed, stopped and asked for their log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.waiting import PATIENCE_SECONDS, eventually

ROOT = Path(__file__).parent.parent.parent


class WorkerProcess:
    """One `worker run` with its log in a file."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], command: tuple[str, ...]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        settings = {
            "DG_WORKER_NAME": name,
            "DG_RUNTIME_DIR": str(folder / "runtime"),
            "PYTHONPATH": str(ROOT),
        }
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, **settings, **environment},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until_logged(self, words: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait for a line of its log."""
        eventually(
            lambda: words in self.log or self.process.poll() is not None,
            timeout_seconds,
            what=f"{words!r} in {self.log_path}",
        )
        assert words in self.log, f"{self.name} ended with code {self.process.returncode}:\n{self.log}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: nothing is cleaned up."""
        self.process.kill()
        self.process.wait()

    def exit_code(self, timeout_seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for its end."""
        return self.process.wait(timeout_seconds)


@contextmanager
def running_worker(
    name: str,
    folder: Path,
    environment: Mapping[str, str],
    *,
    ready: str | None = "worker_takes_jobs",
    command: tuple[str, ...] = ("-m", "worker", "run"),
) -> Iterator[WorkerProcess]:
    """A worker that runs inside the `with` block, once it has logged `ready`."""
    worker = WorkerProcess(name, folder, environment, command)
    try:
        if ready:
            worker.wait_until_logged(ready)
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.kill()
