"""Everything that happens to a job or to a worker, each as one frozen value, sent once.

    run_edit, settle, model_pool, reconciler, ...  --send-->  Events  --+--> the log (`worker/event_log.py`)
                                                                        +--> whoever else listens

A listener is called in the thread in which the thing happened: it must be quick and must not wait. One that fails is
logged and harms nothing. No event carries a secret or a prompt.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, ClassVar, get_type_hints

from jobs.schema import EditJob, JobState

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Said:
    """Marks a field that stands in the event's line, under `key` and formatted by `form`."""

    key: str
    form: str = "{}"


@dataclass(frozen=True)
class Event:
    """Something that has happened. `name` begins its line in the log; `level` is the level of `logging`."""

    level: ClassVar[int] = logging.INFO

    @property
    def name(self) -> str:
        return _snake_case(type(self).__name__)

    @property
    def error(self) -> BaseException | None:
        """The exception whose trace belongs into the log; None when the line says it all."""
        return None

    def items(self) -> Iterator[tuple[str, str]]:
        """The fields of the event's line: key and text."""
        for field, marked in _said_fields(type(self)):
            yield marked.key, marked.form.format(getattr(self, field))

    def facts(self) -> dict[str, Any]:
        """The same fields, for programs: key and value, unformatted."""
        kind: Any = type(self)
        return {marked.key: getattr(self, field) for field, marked in _said_fields(kind)}


@dataclass(frozen=True)
class Warned(Event):
    """An event that an operator may want to look into."""

    level: ClassVar[int] = logging.WARNING


@dataclass(frozen=True)
class Failed(Event):
    """An event that has cost something."""

    level: ClassVar[int] = logging.ERROR


@dataclass(frozen=True)
class Ended(Event):
    """An event after which this process takes no more jobs."""

    level: ClassVar[int] = logging.CRITICAL


@dataclass(frozen=True)
class Origin:
    """Where a job comes from: its batch, and the W3C trace context of whoever asked for it."""

    batch: str | None = None
    traceparent: str | None = None

    @classmethod
    def of(cls, job: EditJob) -> Origin:
        return cls(job.batch, job.traceparent)


NOWHERE = Origin()


# --- messages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MessagePutAside(Warned):
    """A message was none of ours; it lies among the dead letters."""

    size_bytes: Annotated[int, Said("bytes")]
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class DeadLetterLost(Warned):
    """Redis refused even the dead letter."""

    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class MessageDropped(Event):
    """A message asked for a job that cannot be claimed: `reason` is its state, `delayed` or `unknown`."""

    job_id: Annotated[str, Said("job")]
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class JobsUnknown(Warned):
    """Messages named jobs that the ledger at this prefix does not know; at most one line a minute."""

    messages: Annotated[int, Said("messages")]
    job_id: Annotated[str, Said("job")]
    key_prefix: Annotated[str, Said("prefix")]
    remedy: Annotated[str, Said("remedy")]


@dataclass(frozen=True)
class MessageReturned(Warned):
    """A message went back to the queue unread, because this worker takes no jobs any more."""

    job_id: Annotated[str, Said("job")]
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class JobRefused(Failed):
    """A plain client's message carried a job that the ledger does not accept."""

    job_id: Annotated[str, Said("job")]
    reason: Annotated[str, Said("reason")]


# --- a job's run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobTaken(Event):
    """A run of a job begins: this worker holds its lease."""

    level: ClassVar[int] = logging.DEBUG
    job_id: Annotated[str, Said("job")]
    attempt: Annotated[int, Said("attempt")]
    queued_seconds: Annotated[float, Said("queued", "{:.2f}")]
    origin: Origin = NOWHERE


@dataclass(frozen=True)
class StageEnded(Event):
    """A stage of a run is over: `fetch`, `waiting`, `encode`, `sample`, `decode` or `upload`."""

    level: ClassVar[int] = logging.DEBUG
    job_id: Annotated[str, Said("job")]
    stage: Annotated[str, Said("stage")]
    seconds: Annotated[float, Said("seconds", "{:.3f}")]


@dataclass(frozen=True)
class TurnEnded(Event):
    """A run has given the GPU back after `steps` finished sampling steps."""

    level: ClassVar[int] = logging.DEBUG
    job_id: Annotated[str, Said("job")]
    seconds: Annotated[float, Said("seconds", "{:.3f}")]
    steps: Annotated[int, Said("steps")]


@dataclass(frozen=True)
class StepsSkipped(Event):
    """The step cache computed so many of a run's sampling steps and skipped the others."""

    job_id: Annotated[str, Said("job")]
    computed: Annotated[int, Said("computed")]
    steps: Annotated[int, Said("steps")]


@dataclass(frozen=True)
class MemorySpared(Warned):
    """The device's memory was not enough; the run goes on once more with offload."""

    job_id: Annotated[str, Said("job")]
    next: Annotated[str, Said("next")]

    @property
    def name(self) -> str:
        return "out_of_memory"


@dataclass(frozen=True)
class RunFailed(Warned):
    """A run ended without an image. `cause` is set when nobody foresaw the exception."""

    job_id: Annotated[str, Said("job")]
    code: Annotated[str, Said("code")]
    cause: BaseException | None

    @property
    def error(self) -> BaseException | None:
        return self.cause


NO_CODE = "-"
"""In place of an error code, for a job that succeeded."""


@dataclass(frozen=True)
class JobEnded(Event):
    """A job has reached its terminal state, written by this worker."""

    job_id: Annotated[str, Said("job")]
    attempt: Annotated[int, Said("attempt")]
    seconds: Annotated[float, Said("seconds", "{:.2f}")]
    code: Annotated[str, Said("code")]
    """The error code, or `NO_CODE`."""
    state: JobState
    queued_seconds: float

    @property
    def name(self) -> str:
        return f"job_{self.state}"


@dataclass(frozen=True)
class JobRequeued(Event):
    """A run ended and its job waits again, after `delay_seconds`."""

    job_id: Annotated[str, Said("job")]
    attempt: Annotated[int, Said("attempt")]
    code: Annotated[str, Said("code")]
    delay_seconds: Annotated[float, Said("delay", "{:.1f}")]


@dataclass(frozen=True)
class LeaseLost(Warned):
    """The job belongs to another run by now; what this one made is dropped."""

    job_id: Annotated[str, Said("job")]
    attempt: Annotated[int, Said("attempt")]


@dataclass(frozen=True)
class RunAbandoned(Failed):
    """A run's end could not be written before the process had to leave; the job's lease will run out."""

    task_id: Annotated[str, Said("task")]
    reason: Annotated[str, Said("reason")]


# --- the ledger's repairs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reconciled(Event):
    """The reconciler had its turn and made so many repairs, each of which is an event of its own."""

    level: ClassVar[int] = logging.DEBUG
    repairs: Annotated[int, Said("repairs")]
    seconds: Annotated[float, Said("seconds", "{:.3f}")]


@dataclass(frozen=True)
class LeaseExpired(Warned):
    """A job's worker was silent for a lease; the job waits again."""

    job_id: Annotated[str, Said("job")]


@dataclass(frozen=True)
class AttemptsUsedUp(Warned):
    """A job's worker was silent for a lease, for the last time allowed; the job failed."""

    job_id: Annotated[str, Said("job")]


@dataclass(frozen=True)
class LostJobCancelled(Warned):
    """A job's worker was silent for a lease, and the job's cancel was already asked for; it is cancelled."""

    job_id: Annotated[str, Said("job")]


@dataclass(frozen=True)
class MessageLost(Warned):
    """A job waited without a message; a new one is in the queue."""

    job_id: Annotated[str, Said("job")]


# --- callbacks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CallbackSettled(Event):
    """A receiver has been called once. `verdict` is `delivered`, `pending` (tried again) or `dropped`."""

    job_id: Annotated[str, Said("job")]
    attempt: Annotated[int, Said("attempt")]
    answer: Annotated[str, Said("said")]
    retry_in_seconds: Annotated[float, Said("retry_in", "{:.0f}")]
    verdict: str
    seconds: float
    """How long the receiver took."""
    origin: Origin = NOWHERE

    @property
    def name(self) -> str:
        return f"callback_{self.verdict}"


@dataclass(frozen=True)
class CallbackRetried(CallbackSettled, Warned):
    """A receiver has been called once and has not taken the callback."""


@dataclass(frozen=True)
class NewsTold(Event):
    """A receiver has been called with news of a running job, which are tried once, whatever it says."""

    level: ClassVar[int] = logging.DEBUG

    job_id: Annotated[str, Said("job")]
    event: Annotated[str, Said("event")]
    answer: Annotated[str, Said("said")]
    seconds: Annotated[float, Said("seconds", "{:.2f}")]


@dataclass(frozen=True)
class CallbackNotSettled(Warned):
    """Redis could not be told how a callback went; it comes again."""

    job_id: Annotated[str, Said("job")]
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class CallbackFailed(Failed):
    """A callback ended in an exception that nobody foresaw; it counts as an attempt."""

    job_id: Annotated[str, Said("job")]
    cause: BaseException

    @property
    def error(self) -> BaseException | None:
        return self.cause


# --- the worker -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelLoading(Event):
    """The engine has read so many bytes of its weights."""

    percent: Annotated[int, Said("percent")]
    read_gigabytes: Annotated[float, Said("read", "{:.2f}GB")]
    total_gigabytes: Annotated[float, Said("total", "{:.2f}GB")]
    seconds: Annotated[float, Said("seconds", "{:.1f}")]


@dataclass(frozen=True)
class ModelReady(Event):
    """The model is loaded and warm."""

    model: Annotated[str, Said("model")]
    engine: Annotated[str, Said("engine")]
    device: Annotated[str, Said("device")]
    seconds: Annotated[float, Said("seconds", "{:.1f}")]


@dataclass(frozen=True)
class ModelNotLoaded(Ended):
    """The engine refused to load; the process ends."""

    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class WarmUpFailed(Warned):
    """The warm-up edit gave no image; jobs will fail and say why."""

    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class WorkerTakesJobs(Event):
    """The worker is connected and takes jobs."""

    worker: Annotated[str, Said("name")]
    threads: Annotated[int, Said("threads")]


@dataclass(frozen=True)
class WorkerStopped(Event):
    """The worker has finished or handed back everything and leaves."""

    worker: Annotated[str, Said("name")]


@dataclass(frozen=True)
class WorkerBroken(Ended):
    """The device or the model can no longer be used; the process ends for its supervisor to start a fresh one."""

    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class WorkerStuck(Ended):
    """A step did not end; the process ends at once."""

    job_id: Annotated[str, Said("job")]
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class DeviceTriedOut(Warned):
    """Different jobs failed in a row, but the warm-up edit works: the jobs are to blame; the worker goes on."""

    jobs: Annotated[int, Said("jobs")]


@dataclass(frozen=True)
class RedisAway(Warned):
    """Redis does not answer: the process waits for it. Said again for another reason, and every five minutes."""

    seconds: Annotated[float, Said("seconds", "{:.0f}")]
    is_first: bool
    reason: Annotated[str, Said("reason")]


@dataclass(frozen=True)
class RedisBack(Event):
    """Redis answers again, after so many seconds."""

    seconds: Annotated[float, Said("seconds", "{:.0f}")]


@dataclass(frozen=True)
class EndNotWritten(Warned):
    """Redis does not answer while a run's end has to be written; it is tried again."""

    retry_in_seconds: Annotated[float, Said("retry_in", "{:.1f}")]
    reason: Annotated[str, Said("reason")]

    @property
    def name(self) -> str:
        return "redis_away"


@dataclass(frozen=True)
class TickFailed(Failed):
    """A background thread met an exception that nobody foresaw, and goes on."""

    thread: Annotated[str, Said("thread")]
    cause: BaseException

    @property
    def error(self) -> BaseException | None:
        return self.cause


Listener = Callable[[Event], None]


class Events:
    """Sends each event to every listener, in the sender's thread."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def send(self, event: Event) -> None:
        """Tell every listener; one that raises is logged, and the others still hear."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # a broken metric must never cost a job
                log.exception("listener_failed event=%s", event.name)


def _said_fields(kind: type[Event]) -> tuple[tuple[str, Said], ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (field.name, marked)
        for field in fields(kind)
        for marked in getattr(hints[field.name], "__metadata__", ())
        if isinstance(marked, Said)
    )


@cache
def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
