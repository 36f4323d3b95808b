"""Child processes that never outlive the program that started them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.machine import end_with_parent


def start_child(command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that Ctrl-C reaches only us and we stop it in our own order.

    On Linux the kernel kills it when we are killed; elsewhere it would go on and must be ended by hand.
    """
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGKILL),
        )


def stop_child(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """Ask a program to end (SIGTERM) and kill it when it has not done so in time."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_line(log: Path) -> str:
    """The last line that a program has logged; empty when there is none."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[-50:]] if log.exists() else []
    return next((line for line in reversed(lines) if line), "")
