"""`worker run --gpus`: one worker process for each GPU of a host, under one supervisor.

Each process sees one GPU. One that dies is started again, ever more slowly; wrong settings and missing weights end all
of them, since nothing gets better by repeating. SIGTERM drains all at once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock, Thread
from typing import IO

from jobs.errors import SettingsError
from jobs.machine import end_with_parent, visible_gpus
from worker.settings import Settings

FINAL_CODES = frozenset({2, 4})
"""Wrong settings, no model: the same for every process, now and later."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
WELL_AFTER_SECONDS = 600.0
"""A process that has lived this long is started again at once when it dies."""

POLL_SECONDS = 0.2

LAST_LINES_SECONDS = 2.0
"""How long the last lines of a process that has ended are waited for: what it has left behind may hold them open."""


def choose_gpus(asked: str, environment: Mapping[str, str]) -> list[str]:
    """The GPUs that `--gpus` names: `all`, or indexes such as `0,2`.

    Raises:
        SettingsError: it names none, or one twice.
    """
    if asked.strip() == "all":
        if found := visible_gpus(environment):
            return found
        raise SettingsError("--gpus all: no GPU is visible here (nvidia-smi, CUDA_VISIBLE_DEVICES)")
    gpus = [name.strip() for name in asked.split(",")]
    if not all(name.isdigit() for name in gpus) or len(set(gpus)) < len(gpus):
        raise SettingsError(f"--gpus {asked}: expected all, or different indexes such as 0,2")
    return gpus


def process_environment(environment: Mapping[str, str], settings: Settings, gpu: str, number: int) -> dict[str, str]:
    """The environment of one process: its GPU, a name of its own, and a port of its own for its metrics."""
    name = environment.get("DG_WORKER_NAME") or socket.gethostname()
    own = {"CUDA_VISIBLE_DEVICES": gpu, "DG_WORKER_NAME": f"{name}-gpu{gpu}"}
    if settings.metrics_port is not None:
        own["DG_METRICS_PORT"] = str(settings.metrics_port + number)
    return {**environment, **own}


@dataclass
class Member:
    """One worker process of the fleet, over all its lives."""

    gpu: str
    environment: Mapping[str, str]
    process: subprocess.Popen[str] | None = None
    reader: Thread | None = None
    sigterms: int = 0
    """How many SIGTERMs the process that lives now was sent."""
    started_at: float = 0.0
    pause_seconds: float = 0.0
    due_at: float = field(default_factory=time.monotonic)


class Fleet:
    """Keeps one worker a GPU alive until it is told to stop.

    Args:
        command: what each process runs.
        environments: each GPU with the environment of its process.
        out: where their lines go, each with its GPU in front unless `is_json`.
    """

    def __init__(
        self, command: Sequence[str], environments: Mapping[str, Mapping[str, str]], out: IO[str], is_json: bool = False
    ) -> None:
        self._command = command
        self._members = [Member(gpu, environment) for gpu, environment in environments.items()]
        self._out = out
        self._is_json = is_json
        self._lock = Lock()
        self._stops = 0

    def stop(self) -> None:
        """Pass a SIGTERM on to every process; the second one ends their patience, as for one worker.

        Only counts, since it is called by a signal handler, which may interrupt the start of a process: `run` sends.
        """
        self._stops += 1

    def run(self) -> int:
        """Start all, restart those that die, and return when all have ended after `stop`, or one for good.

        Returns:
            Exit code: 0, or that of the first process that failed for good or failed to drain.
        """
        code = 0
        while True:
            for member in self._members:
                ended = self._look_after(member)
                code = code or ended
                if ended in FINAL_CODES and not self._stops:
                    self.stop()
            if self._stops and all(member.process is None for member in self._members):
                return code
            time.sleep(POLL_SECONDS)

    def _look_after(self, member: Member) -> int:
        """Start what is due; returns the code of a process that has just ended and stays so, otherwise 0."""
        if member.process is None:
            if not self._stops and time.monotonic() >= member.due_at:
                self._start(member)
            return 0
        code = member.process.poll()
        if code is None:
            _pass_stop_on(member, self._stops)
            return 0
        member.process = None
        if member.reader is not None:
            member.reader.join(LAST_LINES_SECONDS)
        if self._stops and code == -signal.SIGTERM:  # so young that it did not drain yet: it had nothing to hand back
            return 0
        if self._stops or code in FINAL_CODES:
            return code if code >= 0 else 128 - code  # ended by a signal, as a shell spells it
        self._plan_restart(member, code)
        return 0

    def _start(self, member: Member) -> None:
        member.started_at, member.sigterms = time.monotonic(), 0
        member.process = subprocess.Popen(
            self._command,
            env=member.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches only us, and we pass it on once
            preexec_fn=end_with_parent(signal.SIGTERM),
        )
        member.reader = Thread(target=self._pass_lines_on, args=(member.gpu, member.process.stdout), daemon=True)
        member.reader.start()

    def _plan_restart(self, member: Member, code: int) -> None:
        lived = time.monotonic() - member.started_at
        longer = min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, member.pause_seconds * 2))
        member.pause_seconds = FIRST_PAUSE_SECONDS if lived >= WELL_AFTER_SECONDS else longer
        member.due_at = time.monotonic() + member.pause_seconds
        words = f"worker ended with code {code}; another starts in {member.pause_seconds:g} s"
        facts = {"level": "WARNING", "logger": "worker.fleet", "gpu": member.gpu, "message": words}
        time_now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._say(member.gpu, json.dumps({"time": time_now, **facts}) if self._is_json else words)

    def _pass_lines_on(self, gpu: str, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self._say(gpu, line.rstrip("\n"))

    def _say(self, gpu: str, line: str) -> None:
        with self._lock:
            self._out.write(f"{line}\n" if self._is_json else f"gpu{gpu} {line}\n")
            self._out.flush()


def _pass_stop_on(member: Member, stops: int) -> None:
    """Send a process the next SIGTERM that it has not had; one a look, since two at once would be merged into one."""
    if member.process is not None and member.sigterms < stops:
        member.process.terminate()
        member.sigterms += 1


def run_fleet(asked: str, settings: Settings) -> int:
    """Run a worker on each of the GPUs until SIGTERM; returns the exit code.

    Raises:
        SettingsError: the GPUs cannot be read.
    """
    gpus = choose_gpus(asked, os.environ)
    environments = {gpu: process_environment(os.environ, settings, gpu, number) for number, gpu in enumerate(gpus)}
    command = [sys.executable, "-P", "-m", "worker", "run"]
    fleet = Fleet(command, environments, sys.stderr, settings.log_format == "json")
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: fleet.stop())
    return fleet.run()
