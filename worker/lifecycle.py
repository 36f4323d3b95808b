"""Where Celery's start and shutdown meet ours.

Start: our threads begin to beat, then the model loads, then Celery's consumer connects: no job is taken before the
model is ready. Shutdown (SIGTERM): Celery stops its consumer first; then we finish or hand back what runs, while the
leases are still renewed; then Celery's pool has nothing left to wait for.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from typing import Any

from celery import bootsteps, signals
from celery.apps.worker import install_worker_term_handler  # type: ignore[attr-defined]  # types lack it

from jobs.errors import Error
from kontext import DeviceTaken, KontextError
from worker.admission import AdmissionStep
from worker.edit_worker import EXIT_BROKEN, EditWorker, StoppedWhileLoading
from worker.events import Listener, ModelNotLoaded, WorkerTakesJobs
from worker.faults import is_out_of_memory
from worker.intake import IntakeStep
from worker.listeners import listeners
from worker.settings import Settings
from worker.tasks import register

EXIT_NO_MODEL = 4

SWITCH_SECONDS = 0.0005
"""How long a thread keeps Python while another waits for it; 5 ms by default, which an upload would cost the GPU."""


class ServiceStep(bootsteps.StartStopStep):
    """Starts our worker before Celery's consumer, and stops it after."""

    requires = ("celery.worker.components:Pool",)

    def start(self, controller: Any) -> None:
        worker: EditWorker = controller.app.edit_worker
        if controller.pool_cls.__module__ != "celery.concurrency.thread":
            raise SystemExit("start Celery with --pool threads: one process holds one model, and threads share it")
        # Without words of Celery's own on stdout, between the lines of the log.
        install_worker_term_handler(controller, verbose=False)
        # Celery's own handler ends with exit code 1, and a second Ctrl-C kills runs instead of handing them back.
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))
        sys.setswitchinterval(SWITCH_SECONDS)
        try:
            worker.start()
        except StoppedWhileLoading:
            worker.stop()
            logging.shutdown()
            os._exit(0)  # the thread that loads would keep the interpreter from ending
        except BaseException as error:
            code, reason = why_not_loaded(error)
            if code is not None:
                worker.events.send(ModelNotLoaded(reason))
            worker.stop()  # Celery stops only what has started
            if code is None:
                raise
            raise SystemExit(code) from error

    def stop(self, controller: Any) -> None:
        worker: EditWorker = controller.app.edit_worker
        worker.finish_drain()
        worker.stop()

    def terminate(self, controller: Any) -> None:
        self.stop(controller)


def why_not_loaded(error: BaseException) -> tuple[int | None, str]:
    """Exit code and reason of a worker whose model did not load; no code for a fault of the engine's own.

    Memory that others hold may be free in a moment: a supervisor should try again.
    """
    if isinstance(error, DeviceTaken):
        return EXIT_BROKEN, str(error)
    if isinstance(error, KontextError | Error):
        return EXIT_NO_MODEL, str(error)
    if isinstance(error, Exception) and is_out_of_memory(error):
        said = (str(error).splitlines() or [type(error).__name__])[0]
        way_out = "end what else uses it, or set DG_FLUX_KONTEXT_OFFLOAD=auto"
        return EXIT_BROKEN, f"not enough memory to load the model: {way_out} ({said})"
    return None, ""


def make_worker(settings: Settings) -> EditWorker:
    """Make the worker with its Celery application, ready for `app.Worker` or `celery -A worker.app`.

    Raises:
        SettingsError: the port for its metrics is taken.
    """
    heard_by = listeners("kontext-worker", settings.worker_name)
    if settings.metrics_port is None:
        worker = EditWorker(settings, heard_by)
    else:
        worker = _make_measured_worker(settings, heard_by)
    register(worker.app, worker)
    worker.app.steps["worker"].add(ServiceStep)
    worker.app.steps["consumer"].add(AdmissionStep)
    worker.app.steps["consumer"].add(IntakeStep)
    signals.worker_ready.connect(lambda **_: _say_ready(worker), weak=False, dispatch_uid="ready")
    signals.worker_shutting_down.connect(lambda **_: worker.begin_drain(), weak=False, dispatch_uid="drain")
    return worker


def _make_measured_worker(settings: Settings, heard_by: tuple[Listener, ...]) -> EditWorker:
    """Make a worker that answers probes and scrapes from now on, while its model loads and while it drains."""
    from worker.metrics.activity import WorkerCollector, worker_metrics
    from worker.metrics.server import serve_metrics

    registry, counted_by = worker_metrics()
    worker = EditWorker(settings, (*heard_by, *counted_by))
    registry.register(WorkerCollector(lambda: worker.state, lambda: worker.pool.engine))
    serve_metrics(
        settings,
        registry,
        why_not_live=lambda: worker.health.why_not_live(time.time()),
        why_not_ready=lambda: worker.health.why_not_ready(time.time()),
    )
    return worker


def _say_ready(worker: EditWorker) -> None:
    worker.events.send(WorkerTakesJobs(worker.settings.worker_name, worker.settings.worker_threads))
