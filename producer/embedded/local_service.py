"""The whole service on this machine for a while: a private Redis, one worker, and a client for both."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
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

WORKER_COMMAND = (sys.executable, "-P", "-m", "worker", "run")
"""`-P`: a `celery.py` beside the table must not become the worker's Celery."""

WORKER_STOP_SECONDS = 20.0


NO_VARIABLES: Mapping[str, str] = {}

FRIENDLY_THREADS = {"OMP_WAIT_POLICY": "passive"}
"""Torch's threads sleep while they wait for each other. Spinning is a third faster on an idle machine and many times
slower on one with other work, as a person's own machine has."""


class LocalSettings(BrokerSettings):
    """Settings that the service passes to its worker; the worker reads every other variable itself."""

    outage_seconds: SecondsOrZero = 15.0
    """Shorter than the worker's default, because a person waits for the end of the table."""


class EndRequest:
    """Whether a signal has asked this process to end; no lock, since its handler may interrupt itself."""

    def __init__(self) -> None:
        self.has_come = False

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler of a signal."""
        self.has_come = True
        raise KeyboardInterrupt


class LocalService:
    """Workers on this machine, and the client that feeds them."""

    def __init__(self, client: Client, workers: Sequence[tuple[Popen[bytes], Path]], end: EndRequest) -> None:
        self.client = client
        self._workers = workers
        self._end = end

    def check(self) -> None:
        """Find out whether the workers can still work.

        Raises:
            WorkerFailed: one has ended or reports that it is broken; with its last log line.
            KeyboardInterrupt: this process was told to end, and nobody has noticed.
        """
        if self._end.has_come:
            raise KeyboardInterrupt
        for process, log in self._workers:
            if (code := process.poll()) is not None:
                said = last_line(log) or "it said nothing"
                raise WorkerFailed(f"the worker ended with code {code}: {said}")
        for worker in self.client.registry.workers():
            if worker.state is WorkerState.BROKEN:
                raise WorkerFailed(f"the worker cannot work: {worker.detail}")


@contextmanager
def local_service(
    output_uri: str, log: Path, gpus: Sequence[str | None] = (None,), variables: Mapping[str, str] = NO_VARIABLES
) -> Iterator[LocalService]:
    """Run the service for the length of a block and leave nothing running behind it.

    Args:
        output_uri: where outputs go when a job names none.
        log: a new file for what the worker says; of several, the second has `worker-2.log` beside it.
        gpus: for each worker the GPU that it shall see, or None.
        variables: settings of the workers beside those of the environment.
    Raises:
        SetupError: the worker or a Redis is not installed.
    """
    _require_worker()
    with ends_like_ctrl_c() as end, private_folder() as folder, private_redis(folder) as broker_url:
        # Only this person's jobs reach this Redis: the worker may read and write what the person may.
        settings = load_settings(LocalSettings, broker_url=broker_url, output_uri=output_uri, max_queued=0)
        environment = {**FRIENDLY_THREADS, **os.environ, **variables, **_worker_environment(settings, folder)}
        workers: list[tuple[Popen[bytes], Path]] = []
        try:
            for number, gpu in enumerate(gpus, start=1):
                path = log if number == 1 else log.with_stem(f"{log.stem}-{number}")
                path.unlink(missing_ok=True)
                own = {"DG_WORKER_NAME": f"local-{os.getpid()}-{number}"}
                own |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
                workers.append((start_child(WORKER_COMMAND, path, {**environment, **own}), path))
            yield LocalService(Client(settings=settings), workers, end)
        finally:
            for worker, _ in workers:  # all of them first, so that they end side by side
                if worker.poll() is None:
                    worker.terminate()
            for worker, _ in workers:
                stop_child(worker, WORKER_STOP_SECONDS)


def _worker_environment(settings: LocalSettings, folder: Path) -> dict[str, str]:
    return {
        "DG_BROKER_URL": settings.broker_url,
        "DG_KEY_PREFIX": settings.key_prefix,
        "DG_OUTPUT_URI": settings.output_uri,
        "DG_FILE_ROOTS": "/",
        "DG_BUCKETS": "*",
        "DG_RUNTIME_DIR": str(folder),
        "DG_OUTAGE_SECONDS": str(settings.outage_seconds),
        "DG_DRAIN_SECONDS": "0",  # its Redis is about to go as well
    }


def _require_worker() -> None:
    if any(importlib.util.find_spec(package) is None for package in ("worker", "torch")):
        raise SetupError("an embedded run needs the worker: pip install 'kontext-edits[worker]'")


@contextmanager
def ends_like_ctrl_c() -> Iterator[EndRequest]:
    """Leave the block in order on SIGTERM, and when the terminal is closed; only the main thread can ask for that.

    A SIGHUP that is ignored stays ignored: so `nohup` has it. A signal that comes while Python runs a destructor, where
    an exception ends nothing, is noticed by the next `LocalService.check`.
    """
    end = EndRequest()
    if threading.current_thread() is not threading.main_thread():
        yield end
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end.interrupt) for number in wanted}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
