"""One job, from its message to its terminal state. No Celery in here."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain, repeat
from random import uniform
from threading import Event
from typing import Any, TypeVar
from uuid import uuid4

from PIL.Image import Image

from jobs.errors import (
    BrokerUnavailable,
    Cancelled,
    EditFailure,
    ErrorCode,
    HandBack,
    LeaseLost,
    Outage,
    RejectJob,
    RetryJob,
    StopWorker,
)
from jobs.ledger import Claim, Ledger, Refusal, Spent
from jobs.queue import EditQueue
from jobs.registry import WorkerState
from jobs.schema import CONTENT_TYPES, JOB_ID_PATTERN, EditJob, EngineInfo, ErrorInfo, JobState, Outcome, Timings
from kontext import DecodedImage, Edited, ImageError, ImageOptions, decode_with_warnings, encode_image
from storage import Storage
from storage.uris import show_uri
from worker.admission import Admission
from worker.engines import Engine, edit_request
from worker.faults import FaultStreak, classify, is_out_of_memory
from worker.leases import ENCODING, LeaseKeeper, Run
from worker.model_pool import ModelPool
from worker.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

BACK_OFF_SECONDS = 2.0
"""Pause before the second run; it doubles with each further one, with jitter, up to `LONGEST_BACK_OFF_SECONDS`."""

LONGEST_BACK_OFF_SECONDS = 60.0

PERSIST_SECONDS = (0.2, 0.5, 1, 2, 5)
"""Pauses while Redis is away and a run's end has to be written; the last one repeats."""


@dataclass(frozen=True)
class Services:
    """Everything a run needs; made once per process."""

    settings: Settings
    ledger: Ledger
    queue: EditQueue
    storage: Storage
    pool: ModelPool
    leases: LeaseKeeper
    admission: Admission
    faults: FaultStreak
    must_leave: Event


def run_message(message: Any, task_id: str, services: Services) -> None:
    """Run what a message stands for: the id of a job in the ledger or, from a plain Celery client, the job itself.

    Raises:
        StopWorker: this process cannot go on; the job is back in the queue.
    """
    job_id = adopt(message, task_id, services)
    if job_id is None:
        return
    if services.pool.state is WorkerState.BROKEN:
        log.warning("message_returned job=%s reason=this worker is broken", job_id)
        services.queue.send([job_id])
        return
    settings, token = services.settings, uuid4().hex
    claim = _persist(
        lambda: services.ledger.claim(job_id, settings.worker_name, settings.lease_seconds, token), services
    )
    if isinstance(claim, Refusal):
        log.info("message_dropped job=%s reason=%s", job_id, claim.reason)
        return
    run_claim(claim, task_id, services)


def adopt(message: Any, task_id: str, services: Services) -> str | None:
    """Put a plain client's job into the ledger and return its id; None when the id is another job's."""
    if isinstance(message, str):
        return message
    raw = {"id": task_id, **message} if isinstance(message, dict) else message
    job_id = _job_id(raw, task_id)
    adopted = _persist(lambda: services.ledger.adopt(job_id, raw, services.settings.output_uri), services)
    if adopted.verdict == "conflict":
        log.error("job_refused job=%s reason=the id is taken by another job", job_id)
        return None
    return job_id


def run_claim(claim: Claim, task_id: str, services: Services) -> None:
    """Run a claimed job and write its end: a terminal state, or back to the queue.

    Raises:
        StopWorker: this process cannot go on; the job is back in the queue.
    """
    run = Run(claim, services.settings.job_timeout_seconds)
    with services.leases.keep(run):
        try:
            outcome = produce(run, task_id, services)
        except Exception as error:
            failure = classify(error)
            services.faults.note(failure)
            if isinstance(failure, StopWorker):
                close_for_good(services)  # before the job is back in the queue, or this process could take it again
            # The one broad catch: here a run's error becomes the job's. What nobody foresaw is logged with its trace.
            is_foreseen = isinstance(error, EditFailure)
            log.log(logging.WARNING, "run_failed job=%s code=%s", run.job_id, failure.code, exc_info=not is_foreseen)
            _persist(lambda: settle_failure(run, failure, services), services)
            if isinstance(failure, StopWorker):
                raise failure from error
        else:
            services.faults.note(None)
            _persist(lambda: settle(run, JobState.SUCCEEDED, outcome, services), services)


def close_for_good(services: Services) -> None:
    """Take no further job in this process."""
    services.pool.mark_broken()
    services.admission.close()


def produce(run: Run, task_id: str, services: Services) -> Outcome:
    """Fetch, sample, upload."""
    job = run.claim.job
    run.limit(job.timeout_seconds)
    output = job.output
    assert output is not None  # filled in when the ledger accepted the job
    with run.stage("fetching", "fetch"):
        services.storage.check_output(output)  # a wrong bucket should cost no GPU time
        pictures = [fetch(uri, run, services) for uri in job.image]
    with run.stage("waiting"), services.pool.turn(run.check) as engine:
        services.admission.has_gpu(task_id, run.timings["fetch"])
        edited = sample(engine, [picture.image for picture in pictures], job, run, services.pool)
        described = describe_engine(engine)
    with run.stage("uploading", "upload"):
        data = encode(edited, job, described)
        run.check()
        services.storage.publish(output, data, CONTENT_TYPES[job.params.output_format or "png"])
    run.timings.update(edited.timings)
    return Outcome(
        output=output,
        width=edited.image.width,
        height=edited.image.height,
        engine=described,
        timings=Timings(**run.timings),
        warnings=(*chain.from_iterable(picture.warnings for picture in pictures), *edited.warnings),
    )


def fetch(uri: str, run: Run, services: Services) -> DecodedImage:
    """Read and decode one input picture; its warnings name it."""
    run.check()
    settings = services.settings
    data = services.storage.read(uri)
    try:
        picture = decode_with_warnings(data, max_pixels=settings.max_input_pixels, options=ImageOptions())
    except ImageError as error:
        raise RejectJob(ErrorCode.INPUT_NOT_AN_IMAGE, f"{show_uri(uri)}: {error}") from error
    return replace(picture, warnings=tuple(f"{show_uri(uri)}: {warning}" for warning in picture.warnings))


def sample(engine: Engine, images: list[Image], job: EditJob, run: Run, pool: ModelPool) -> Edited:
    """Run the engine; progress, cancel, deadline and drain pass between its steps."""

    def on_step(step: int, total_steps: int) -> None:
        pool.note_step(step, total_steps)
        run.on_step(step, total_steps)

    request = edit_request(job, images)
    with run.stage(ENCODING):
        try:
            return engine.run(request, on_step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("out_of_memory job=%s next=once more with offload", run.job_id)
        with engine.spare_memory():  # outside the handler, whose traceback would keep the first run's tensors alive
            return engine.run(request, on_step)


def encode(edited: Edited, job: EditJob, engine: EngineInfo) -> bytes:
    """Encode the picture with its provenance."""
    return encode_image(
        edited.image,
        output_format=job.params.output_format or "png",
        quality=job.params.quality,
        model_name=engine.model,
        prompt=job.prompt if job.params.embed_prompt else None,
    )


def settle(run: Run, state: JobState, outcome: Outcome, services: Services) -> None:
    """Write the terminal state, unless the job is no longer this run's."""
    ended = services.ledger.finish(run.job_id, run.claim.token, state, outcome)
    if ended is None:
        log.warning("lease_lost job=%s attempt=%d", run.job_id, run.claim.attempt)
        return
    code = outcome.error.code if outcome.error else "-"
    seconds = time.monotonic() - run.started_at
    log.info("job_%s job=%s attempt=%d seconds=%.2f code=%s", ended, run.job_id, run.claim.attempt, seconds, code)


def settle_failure(run: Run, failure: EditFailure, services: Services) -> None:
    """Write how a run without a picture ended: dropped, handed back, tried again later, cancelled or failed."""
    pause = pause_before_next_run(failure, run.claim, services.settings)
    if isinstance(failure, LeaseLost):
        log.warning("lease_lost job=%s attempt=%d", run.job_id, run.claim.attempt)
    elif isinstance(failure, HandBack):
        give_back(run, failure, services, spent="nothing")
    elif pause is not None:
        spent: Spent = "outage" if isinstance(failure, Outage) else "attempt"
        give_back(run, failure, services, pause * uniform(0.75, 1.25), spent)
    else:
        state = JobState.CANCELLED if isinstance(failure, Cancelled) else JobState.FAILED
        error = ErrorInfo(code=failure.code, message=failure.message, retryable=failure.retryable)
        settle(run, state, Outcome(timings=Timings(**run.timings), error=error), services)


def pause_before_next_run(failure: EditFailure, claim: Claim, settings: Settings) -> float | None:
    """How many seconds to wait before the job runs again after this failure, before jitter; None: it has to end.

    Runs that a store or a host made fail are counted apart, by what the pauses between them add up to: a few minutes
    without a store must not fail the jobs that meet them, as a job that fails by itself should after a few attempts.
    """
    if isinstance(failure, Outage):
        pauses = [_back_off(number) for number in range(claim.outages + 1)]
        return pauses[-1] if sum(pauses) <= settings.outage_seconds else None
    if not isinstance(failure, RetryJob | StopWorker) or claim.attempt >= settings.max_attempts:
        return None
    return 0.0 if isinstance(failure, StopWorker) else _back_off(claim.attempt - 1)


def _back_off(number: int) -> float:
    return min(LONGEST_BACK_OFF_SECONDS, BACK_OFF_SECONDS * 2.0 ** min(number, 10))


def give_back(
    run: Run, failure: EditFailure, services: Services, delay_seconds: float = 0, spent: Spent = "attempt"
) -> None:
    """Put the job back into the queue, now or after a delay."""
    answer = services.ledger.requeue(run.job_id, run.claim.token, failure.code, delay_seconds, spent)
    log.info(
        "job_requeued job=%s attempt=%d code=%s delay=%.1f", run.job_id, run.claim.attempt, failure.code, delay_seconds
    )
    if answer == "queued":
        services.queue.send([run.job_id])


def describe_engine(engine: Engine) -> EngineInfo:
    return EngineInfo(
        name=engine.name,
        model=engine.model_name,
        fingerprint=engine.fingerprint,
        approximations=tuple(engine.approximations),
    )


def _job_id(raw: Any, task_id: str) -> str:
    given = raw.get("id") if isinstance(raw, dict) else None
    return given if isinstance(given, str) and re.fullmatch(JOB_ID_PATTERN, given) else task_id


def _persist(write: Callable[[], T], services: Services) -> T:
    """Repeat a call of the ledger until Redis answers: a run's end must not be lost to a restart of Redis.

    Raises:
        BrokerUnavailable: Redis is away while the process has to leave; the job's lease will run out instead.
    """
    for pause in chain(PERSIST_SECONDS, repeat(PERSIST_SECONDS[-1])):
        try:
            return write()
        except BrokerUnavailable as error:
            if services.must_leave.wait(pause):
                raise
            log.warning("redis_away retry_in=%.1f reason=%s", pause, error)
    raise AssertionError("unreachable: the pauses never end")
