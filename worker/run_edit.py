"""One job, from its message to its image. No Celery in here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any
from uuid import uuid4

from jobs.errors import EditFailure, ErrorCode, LeaseLost, RejectJob, StopWorker
from jobs.ledger import Claim, Ledger, Refusal
from jobs.queue import EditQueue
from jobs.registry import WorkerState
from jobs.schema import (
    CONTENT_TYPES,
    JOB_ID_PATTERN,
    EditJob,
    EngineInfo,
    Lora,
    Outcome,
    Timings,
    without_signature,
)
from kontext import DecodedImage, Edited, EditRequest, ImageError, ModelLost, encode_image
from storage import Storage
from storage.store import INPUT, OUTPUT
from storage.uris import scheme_of, show_uri
from worker.admission import Admission
from worker.decoding import Decoder
from worker.engines import Engine, edit_request
from worker.events import (
    NOWHERE,
    DeviceTriedOut,
    Events,
    JobRefused,
    JobTaken,
    MemorySpared,
    MessageDropped,
    MessageReturned,
    Origin,
    RunFailed,
    StageEnded,
    StepsSkipped,
    TurnEnded,
)
from worker.faults import FaultStreak, classify, is_out_of_memory
from worker.isolation import Isolation
from worker.leases import ENCODING, LeaseKeeper, Run
from worker.loras import FetchedLora, LoraStore
from worker.model_pool import ModelPool
from worker.settings import Settings
from worker.settle import Settlement
from worker.slow_inputs import SlowInputs
from worker.transfers import Transfers
from worker.unknown_jobs import UnknownJobs

OnStep = Callable[[int, int], None]

LONGEST_LORA_SECONDS = 600.0
"""To fetch a LoRA, check it, and write up to a gigabyte of it to the cache."""


class EditRunner:
    """Runs jobs in the threads of Celery's pool; made once per process."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        queue: EditQueue,
        storage: Storage,
        loras: LoraStore,
        decoder: Decoder,
        pool: ModelPool,
        leases: LeaseKeeper,
        admission: Admission,
        settlement: Settlement,
        events: Events,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._queue = queue
        self._storage = storage
        self._loras = loras
        self._transfers = Transfers()
        self._slow_inputs = SlowInputs(settings.worker_threads, settings.input_stall_seconds)
        self._decoder = decoder
        self._pool = pool
        self._leases = leases
        self._admission = admission
        self._settlement = settlement
        self._events = events
        self._isolation = Isolation()
        self._unknown_jobs = UnknownJobs(settings.key_prefix, events)
        self._last_run: StopWorker | None = None  # why no other run may follow in this process
        self.faults = FaultStreak()

    def run_message(self, message: Any, task_id: str) -> None:
        """Take the best job that waits and run it; a plain Celery client's message brings its own job in first.

        Raises:
            StopWorker: this process cannot go on; the job is back in the queue.
            BrokerUnavailable: the run's end could not be written before the process had to leave.
        """
        job_id = self._adopt(message, task_id)
        if job_id is None:
            return
        if self._pool.state is WorkerState.BROKEN:
            self._events.send(MessageReturned(job_id, "this worker is broken"))
            self._queue.send([job_id])
            return
        name, lease_seconds, token = self._settings.worker_name, self._settings.lease_seconds, uuid4().hex
        claim = self._settlement.persist(lambda: self._ledger.claim_best(name, lease_seconds, token, hint=job_id))
        if isinstance(claim, Refusal):
            self._events.send(MessageDropped(job_id, claim.reason))
            if claim.reason == "unknown":
                self._unknown_jobs.note(job_id)
            return
        self._events.send(JobTaken(claim.job_id, claim.attempt, claim.queued_seconds, origin_of(claim)))
        self._run(Run(claim, self._settings.job_timeout_seconds), task_id)
        if self._last_run is not None:
            raise self._last_run
        if self.faults.is_suspicious:
            self._try_device()

    def close_for_good(self) -> None:
        """Take no further job in this process."""
        self._pool.mark_broken()
        self._admission.close()

    def _try_device(self) -> None:
        """Do an edit that is known to work, after several different jobs failed in a row in the engine.

        Raises:
            StopWorker: it fails too, so the device or the model is to blame.
        """
        try:
            self._pool.try_out()
        except Exception as error:
            self.close_for_good()
            reason = f"{self.faults.length} different jobs failed in a row, and so did the warm-up edit: {error}"
            raise StopWorker(ErrorCode.WORKER_LOST, reason) from error
        self._events.send(DeviceTriedOut(self.faults.length))
        self.faults.clear()

    def _adopt(self, message: Any, task_id: str) -> str | None:
        """Put a plain client's job into the ledger and return its id; None when the id is another job's."""
        if isinstance(message, str):
            return message
        raw = {"id": task_id, **message} if isinstance(message, dict) else message
        job_id = _job_id(raw, task_id)
        adopted = self._settlement.persist(lambda: self._ledger.adopt(job_id, raw, self._settings.output_uri))
        if adopted.verdict == "conflict":
            self._events.send(JobRefused(job_id, "the id is taken by another job"))
            return None
        return job_id

    def _run(self, run: Run, task_id: str) -> None:
        """Run a claimed job and write its end."""
        with self._leases.keep(run):
            try:
                outcome = self._produce(run, task_id)
            except Exception as error:
                # The one broad catch: here a run's error becomes the job's. What nobody foresaw is reported whole.
                failure = classify(error, self._pool.engine.device if self._pool.engine else "")
                self.faults.note(run.job_id, failure)
                if isinstance(failure, StopWorker):
                    self.close_for_good()  # before the job is back in the queue, or this process could take it again
                is_foreseen = isinstance(error, EditFailure)
                self._events.send(RunFailed(run.job_id, failure.code, None if is_foreseen else error))
                self._settlement.failed(run, failure)
                if isinstance(failure, StopWorker):
                    raise failure from error
            else:
                self.faults.note(run.job_id, None)
                self._settlement.succeeded(run, outcome)

    def _produce(self, run: Run, task_id: str) -> Outcome:
        """Fetch, sample, upload."""
        job = run.claim.job
        run.limit(job.timeout_seconds)
        output = job.output
        assert output is not None  # filled in when the ledger accepted the job
        storage = self._storage.of_profile(job.store_profile, job.tenant)
        with self._stage(run, "fetching", "fetch"), self._slow_inputs.fetch(job.tenant) as has_place:

            def check() -> None:
                run.check()
                has_place()

            # A wrong bucket should cost no GPU time.
            self._transfers.run(output, OUTPUT, lambda: storage.check_output(output), check)
            inputs = [self._read(storage, uri, check) for uri in job.image]
            loras = [self._fetch_lora(job, lora, check) for lora in job.params.loras]
        with self._stage(run, "decoding", "fetch"):
            images = [self._decode(uri, data, run) for uri, data in zip(job.image, inputs, strict=True)]
        self._admission.fetched(task_id, run.timings["fetch"])
        with ExitStack() as until_the_end:
            with ExitStack() as turn:
                with run.stage("waiting"), run.clock_stopped():  # what neighbours and Redis take is not the job's
                    engine = turn.enter_context(self._pool.turn(run.check))
                    until_the_end.enter_context(self._isolation.work(run.claim.is_suspect, run.check))
                    self._spend(run)
                self._admission.has_gpu(task_id, is_alone=run.claim.is_suspect)
                request = edit_request(job, [image.image for image in images], [lora.for_engine for lora in loras])
                edited = self._sample(engine, request, run)
                described = describe_engine(engine)
            with self._stage(run, "uploading", "upload"):
                data = encode(edited, job, described)
                run.check()
                self._publish(storage, output, data, CONTENT_TYPES[job.params.output_format or "png"], run)
        run.timings.update(edited.timings)
        return Outcome(
            output=without_signature(output),
            width=edited.image.width,
            height=edited.image.height,
            engine=described,
            loras=tuple(lora.applied for lora in loras),
            timings=Timings(**run.timings),
            warnings=(*chain.from_iterable(image.warnings for image in images), *edited.warnings),
        )

    def _spend(self, run: Run) -> None:
        """Record that the work begins: from here on a worker that is lost has spent the attempt."""
        if not self._settlement.persist(lambda: self._ledger.spend(run.job_id, run.claim.token)):
            raise LeaseLost

    def _read(self, storage: Storage, uri: str, check: Callable[[], None]) -> bytes:
        if scheme_of(uri) == "data":
            return storage.read(uri)
        return self._transfers.run(uri, INPUT, lambda: storage.read(uri), check)

    def _publish(self, storage: Storage, output: str, data: bytes, content_type: str, run: Run) -> None:
        self._transfers.run(output, OUTPUT, lambda: storage.publish(output, data, content_type), run.check)

    def _fetch_lora(self, job: EditJob, lora: Lora, check: Callable[[], None]) -> FetchedLora:
        def fetch() -> FetchedLora:
            return self._loras.fetch(lora, check, job.store_profile, job.tenant)

        return self._transfers.run(lora.uri, INPUT, fetch, check, LONGEST_LORA_SECONDS)

    def _decode(self, uri: str, data: bytes, run: Run) -> DecodedImage:
        """Decode one input image; its warnings name it."""
        try:
            image = self._decoder.decode(data, run.check)
        except ImageError as error:
            raise RejectJob(ErrorCode.INPUT_NOT_AN_IMAGE, f"{show_uri(uri)}: {error}") from error
        return replace(image, warnings=tuple(f"{show_uri(uri)}: {warning}" for warning in image.warnings))

    def _sample(self, engine: Engine, request: EditRequest, run: Run) -> Edited:
        """Run the engine; progress, cancel, deadline and drain pass between its steps."""
        steps_done = 0

        def on_step(step: int, total_steps: int) -> None:
            nonlocal steps_done
            steps_done += 1
            self._pool.note_step(step, total_steps)
            run.on_step(step, total_steps)

        started = time.monotonic()
        try:
            with run.stage(ENCODING):
                edited = self._pool.call(lambda: self._run_engine(engine, request, on_step, run.job_id))
        finally:
            self._events.send(TurnEnded(run.job_id, time.monotonic() - started, steps_done))
        for stage, seconds in edited.timings.items():
            self._events.send(StageEnded(run.job_id, stage, seconds))
        if edited.steps_computed is not None:
            self._events.send(StepsSkipped(run.job_id, edited.steps_computed, request.num_inference_steps))
        return edited

    def _run_engine(self, engine: Engine, request: EditRequest, on_step: OnStep, job_id: str) -> Edited:
        try:
            return engine.run(request, on_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._events.send(MemorySpared(job_id, "once more with offload"))
        return self._run_spared(engine, request, on_step)  # outside the handler, whose traceback keeps tensors alive

    def _run_spared(self, engine: Engine, request: EditRequest, on_step: OnStep) -> Edited:
        """Run with little of the device's memory; an image that is there counts even if the engine is lost after it."""
        edited: Edited | None = None
        try:
            with engine.spare_memory():
                edited = engine.run(request, on_step)
        except ModelLost as error:
            if edited is None:
                raise
            self.close_for_good()  # before the turn is a neighbour's
            self._last_run = StopWorker(ErrorCode.WORKER_LOST, str(error))
        return edited

    @contextmanager
    def _stage(self, run: Run, name: str, timing: str) -> Iterator[None]:
        before = run.timings.get(timing, 0.0)
        with run.stage(name, timing):
            yield
        self._events.send(StageEnded(run.job_id, timing, run.timings[timing] - before))


def encode(edited: Edited, job: EditJob, engine: EngineInfo) -> bytes:
    """Encode the image with its provenance."""
    return encode_image(
        edited.image,
        output_format=job.params.output_format or "png",
        quality=job.params.quality,
        model_name=engine.model,
        prompt=job.prompt if job.params.embed_prompt else None,
    )


def origin_of(claim: Claim) -> Origin:
    """Where a claimed job comes from; of one that cannot be read nobody knows."""
    try:
        return Origin.of(claim.job)
    except EditFailure:  # it ends the run, where it becomes the job's error
        return NOWHERE


def describe_engine(engine: Engine) -> EngineInfo:
    """What a result tells of its engine."""
    return EngineInfo(
        name=engine.name,
        model=engine.model_name,
        fingerprint=engine.fingerprint,
        approximations=tuple(engine.approximations),
    )


def _job_id(raw: Any, task_id: str) -> str:
    given = raw.get("id") if isinstance(raw, dict) else None
    return given if isinstance(given, str) and re.fullmatch(JOB_ID_PATTERN, given) else task_id
