"""The whole service on this machine for a while: a private Redis, one worker, and a client for both."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import FrameType

from jobs.registry import WorkerState
from jobs.settings import BrokerSettings, SecondsOrZero, load_settings
from producer.client import Client
from producer.embedded.child import last_line, start_child, stop_child
from producer.embedded.private_redis import private_folder, private_redis
from producer.errors import SetupError, WorkerFailed

WORKER_COMMAND = (sys.executable, "-m", "worker", "run")
WORKER_STOP_SECONDS = 20.0

FRIENDLY_THREADS = {"OMP_WAIT_POLICY": "passive"}
"""Torch's threads sleep while they wait for each other. Spinning is a third faster on an idle machine and many times
slower on one with other work, as a person's own machine has."""


class LocalSettings(BrokerSettings):
    """Settings that the service passes to its worker; the worker reads every other variable itself."""

    outage_seconds: SecondsOrZero = 15.0
    """Shorter than the worker's default, because a person waits for the end of the table."""


class LocalService:
    """A worker on this machine, and the client that feeds it."""

    def __init__(self, client: Client, worker: Popen[bytes], log: Path) -> None:
        self.client = client
        self._worker = worker
        self._log = log

    def check(self) -> None:
        """Find out whether the worker can still work.

        Raises:
            WorkerFailed: it has ended or reports that it is broken; with its last log line.
        """
        if (code := self._worker.poll()) is not None:
            said = last_line(self._log) or "it said nothing"
            raise WorkerFailed(f"the worker ended with code {code}: {said}")
        for worker in self.client.registry.workers():
            if worker.state is WorkerState.BROKEN:
                raise WorkerFailed(f"the worker cannot work: {worker.detail}")


@contextmanager
def local_service(output_uri: str, log: Path) -> Iterator[LocalService]:
    """Run the service for the length of a block and leave nothing running behind it.

    Args:
        output_uri: where outputs go when a job names none.
        log: a new file for what the worker says.
    Raises:
        SetupError: the worker or a Redis is not installed.
    """
    _require_worker()
    log.unlink(missing_ok=True)
    with _sigterm_like_ctrl_c(), private_folder() as folder, private_redis(folder) as broker_url:
        # Only this person's jobs reach this Redis: the worker may read and write what the person may.
        settings = load_settings(LocalSettings, broker_url=broker_url, output_uri=output_uri, max_queued=0)
        environment = {**FRIENDLY_THREADS, **os.environ, **_worker_environment(settings, folder)}
        worker = start_child(WORKER_COMMAND, log, environment)
        try:
            yield LocalService(Client(settings=settings), worker, log)
        finally:
            stop_child(worker, WORKER_STOP_SECONDS)


def _worker_environment(settings: LocalSettings, folder: Path) -> dict[str, str]:
    return {
        "DG_BROKER_URL": settings.broker_url,
        "DG_KEY_PREFIX": settings.key_prefix,
        "DG_OUTPUT_URI": settings.output_uri,
        "DG_FILE_ROOTS": "/",
        "DG_BUCKETS": "*",
        "DG_WORKER_NAME": f"local-{os.getpid()}",
        "DG_RUNTIME_DIR": str(folder),
        "DG_OUTAGE_SECONDS": str(settings.outage_seconds),
        "DG_DRAIN_SECONDS": "0",  # its Redis is about to go as well
    }


def _require_worker() -> None:
    if any(importlib.util.find_spec(package) is None for package in ("worker", "torch")):
        raise SetupError("an embedded run needs the worker: pip install 'kontext-edits[worker]'")


@contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Leave the block in order on SIGTERM too; only the main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
