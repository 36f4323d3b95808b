"""The worker of one process: every part made once and wired together, its start and its end."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

from celery.worker import state as celery_state

from jobs.celery_app import make_app
from jobs.connection import connect
from jobs.dead_letters import DeadLetters
from jobs.errors import BrokerError
from jobs.ledger import Ledger
from jobs.queue import EditQueue, count_messages
from jobs.registry import WorkerInfo, WorkerRegistry, WorkerState
from storage import Storage
from storage.guarded_http import guarded_client
from worker.admission import Admission
from worker.background import Periodic
from worker.callbacks import INTERVAL_SECONDS as CALLBACK_SECONDS
from worker.callbacks import CallbackSender
from worker.decoding import Decoder
from worker.device_memory import device_memory
from worker.engines import load_engine
from worker.events import Event, Events, Listener, RunFailed, WorkerBroken, WorkerStopped, WorkerStuck
from worker.health import Health, HealthFile
from worker.intake import Intake
from worker.leases import RENEW_SECONDS, LeaseKeeper, Run
from worker.loading import LoadProgress
from worker.loras import LoraStore
from worker.model_pool import ModelPool
from worker.reconciler import INTERVAL_SECONDS as RECONCILE_SECONDS
from worker.reconciler import Reconciler
from worker.redis_outage import RedisOutage, quiet_consumer
from worker.run_edit import EditRunner
from worker.settings import Settings
from worker.settle import Settlement
from worker.systemd import Systemd
from worker.untaken import Untaken

BEAT_SECONDS = 1.0
EXIT_BROKEN = 70
EXIT_STUCK = 71
DRAIN_POLL_SECONDS = 0.05
AFTER_DRAIN_SECONDS = 10
"""A handed-back run ends at its next step and writes that down; longer than this means that it cannot."""


class StoppedWhileLoading(Exception):
    """Raised when the process is to end before its model is loaded; the load itself cannot be interrupted."""


class EditWorker:
    """One process's worker, as Celery's hooks drive it: `start`, `drain`, `stop`."""

    def __init__(self, settings: Settings, listeners: Sequence[Listener]) -> None:
        self.settings = settings
        self._last_error = ""
        self.events = Events(*listeners, self._note_failure)
        self.app = make_app(settings.broker_url)
        self.app.conf.update(worker_pool="threads", worker_concurrency=settings.worker_threads)
        self.app.edit_worker = self  # type: ignore[attr-defined]  # how the bootsteps find it
        ledger = Ledger.from_settings(settings)
        queue = EditQueue(ledger.redis)
        self.loading = LoadProgress(self.events)
        self.pool = ModelPool(lambda: load_engine(settings, self.loading.report), self.events)
        self.admission = Admission(self.pool, settings.worker_threads)
        self.pool.on_change = self.admission.look_again
        self._untaken = Untaken(lambda: count_messages(ledger.redis), lambda: self._is_idle)
        self.intake = Intake(
            DeadLetters(ledger.redis, ledger.key("dead-letters")),
            settings.worker_name,
            self.events,
            self._untaken.taken,
        )
        self.leases = LeaseKeeper(ledger, settings.lease_seconds, settings.stall_seconds, self._on_stall)
        self.settlement = Settlement(settings, ledger, queue, self.events)
        self._storage = Storage(settings)
        self._loras = LoraStore(settings)
        self._decoder = Decoder(settings.max_input_pixels, settings.decode_seconds, settings.decode_memory)
        self.runner = EditRunner(
            settings,
            ledger,
            queue,
            self._storage,
            self._loras,
            self._decoder,
            self.pool,
            self.leases,
            self.admission,
            self.settlement,
            self.events,
        )
        self._registry = WorkerRegistry(connect(settings.redis_url), settings.key_prefix)
        self._health_file = HealthFile(settings.runtime_dir, settings.worker_name)
        self._systemd = Systemd()
        self._callbacks = CallbackSender(
            settings, ledger, guarded_client(settings, settings.callback_timeout_seconds), self.events
        )
        self._redis_seen_at = 0.0
        self.health = Health(settings.worker_name, os.getpid(), WorkerState.LOADING, time.time(), self._redis_seen_at)
        self._is_draining = False  # a plain flag: a signal handler sets it
        self._must_be_gone_at: float | None = None
        self._drain_wishes: SimpleQueue[bool] = SimpleQueue()
        outage = RedisOutage(self.events)
        quiet_consumer(outage)
        self._threads = [
            Periodic(name, seconds, tick, self.events, outage)
            for name, seconds, tick in (
                ("health", BEAT_SECONDS, self.write_health),
                ("registry", BEAT_SECONDS, self._beat),
                ("leases", RENEW_SECONDS, self.leases.renew_all),
                ("reconciler", RECONCILE_SECONDS, Reconciler(ledger, queue, settings.max_attempts, self.events).tick),
                ("callbacks", CALLBACK_SECONDS, self._callbacks.tick),
            )
        ]

    @property
    def state(self) -> WorkerState:
        if self._is_draining and self.pool.state is not WorkerState.BROKEN:
            return WorkerState.DRAINING
        return self.pool.state

    @property
    def _is_idle(self) -> bool:
        return self.state is WorkerState.READY and not self.leases.runs

    def start(self) -> None:
        """Begin to beat, then load the model; whatever the engine raises goes through."""
        self.write_health()
        Thread(target=self._follow_drain_wishes, name="drain", daemon=True).start()
        for thread in self._threads:
            thread.start()
        self._decoder.warm_up()
        self.pool.load(self._leave_when_draining)

    def begin_drain(self) -> None:
        """Take nothing more; hand back what has not reached the GPU.

        A second call ends the patience with the job on the GPU as well. Called from the signal handler, which may
        interrupt itself: `SimpleQueue.put` is the one way to wake a thread that is safe there.
        """
        self._drain_wishes.put(self._is_draining)
        self._is_draining = True

    def finish_drain(self) -> None:
        """Wait until the jobs of this process have ended or were handed back, at most for the drain time.

        The leases are renewed meanwhile, so nobody else takes a job that is about to finish.
        """
        self._is_draining = True
        self._drain_now(include_sampling=False)
        if not self._wait_for_runs(self.settings.drain_seconds):
            self._drain_now(include_sampling=True)
        self.settlement.must_leave.set()
        self._wait_for_runs(AFTER_DRAIN_SECONDS)

    def stop(self) -> None:
        """End the background threads and leave; the worker says that it lives while callbacks are under way."""
        self._callbacks.close()
        for thread in self._threads:
            thread.stop()
        self._storage.close()
        self._loras.close()
        self._decoder.close()
        self._health_file.remove()
        with suppress(BrokerError):  # the registry forgets silent workers by itself
            self._registry.leave(self.settings.worker_name)
        self.events.send(WorkerStopped(self.settings.worker_name))

    def stop_process(self, reason: str) -> None:
        """End the process with `EXIT_BROKEN`, for its supervisor to start a fresh one."""
        self.events.send(WorkerBroken(reason))
        with suppress(OSError):  # a full disk must not keep the process from ending
            self.write_health(reason)
        celery_state.should_stop = EXIT_BROKEN  # type: ignore[assignment]  # Celery's own way to end with a code

    def write_health(self, detail: str = "", state: WorkerState | None = None) -> None:
        state = state or self.state
        detail = detail or (str(self.loading) if state is WorkerState.LOADING else "")
        self.health = Health(
            self.settings.worker_name,
            os.getpid(),
            state,
            time.time(),
            self._redis_seen_at,
            detail,
            self._untaken.reason,
        )
        # Before the file: a full disk must not look like a hang.
        self._systemd.report(self.health, self.health.written_at)
        self._health_file.write(self.health)

    def _beat(self) -> None:
        engine = self.pool.engine
        self._registry.beat(
            WorkerInfo(
                self.settings.worker_name,
                self.state,
                device=engine.device if engine else "",
                model=engine.model_name if engine else "",
                jobs=tuple(run.job_id for run in self.leases.runs),
                faults_in_a_row=self.runner.faults.length,
                memory_bytes=device_memory(engine.device if engine else "")[0],
                last_error=self._last_error,
                file_roots=tuple(str(root) for root in self.settings.file_roots),
            )
        )
        self._redis_seen_at = time.time()
        self._untaken.look()
        if self._untaken.reason and 0 < self.settings.untaken_seconds < self._untaken.seconds:
            self._end_mute()

    def _end_mute(self) -> None:
        """End an idle process that takes nothing; a consumer that hangs hears of no end, so then without it."""
        if self._must_be_gone_at is None:
            self._must_be_gone_at = time.monotonic() + AFTER_DRAIN_SECONDS
            self.stop_process(f"{self._untaken.reason} (DG_UNTAKEN_SECONDS)")
        elif time.monotonic() > self._must_be_gone_at:
            os._exit(EXIT_BROKEN)

    def _note_failure(self, event: Event) -> None:
        if isinstance(event, RunFailed):
            self._last_error = f"{event.code} in {event.job_id}"

    def _leave_when_draining(self) -> None:
        if self._is_draining:
            raise StoppedWhileLoading

    def _follow_drain_wishes(self) -> None:
        while True:
            self._drain_now(include_sampling=self._drain_wishes.get())

    def _drain_now(self, include_sampling: bool) -> None:
        self.admission.close()
        self.leases.drain(include_sampling)

    def _wait_for_runs(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.leases.runs and time.monotonic() < deadline:
            time.sleep(DRAIN_POLL_SECONDS)
        return not self.leases.runs

    def _on_stall(self, run: Run) -> None:
        """A kernel hangs: no Python code can end it, so the process goes, and its leases with it."""
        detail = f"job {run.job_id}: no step for {self.settings.stall_seconds:g} s"
        self.events.send(WorkerStuck(run.job_id, f"no step for {self.settings.stall_seconds:g} s"))
        with suppress(OSError):
            self.write_health(detail, WorkerState.STUCK)
        os._exit(EXIT_STUCK)
