"""A job's record, read from its hash in Redis, and the outcomes that the ledger itself writes there.

What is accepted is read strictly; what is in the ledger already may be of a newer version and is read tolerantly:
unknown fields are passed over, unknown states and codes become the nearest known ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, cast

from pydantic import ValidationError

from jobs.errors import ErrorCode
from jobs.names import host_of
from jobs.schema import EditJob, EditResult, ErrorInfo, JobEvent, JobState, Outcome, salvage_job

CallbackState = Literal["pending", "delivered", "dropped"]


def failure(code: ErrorCode, message: str, retryable: bool = False) -> str:
    """JSON of the outcome of a job that ended without a picture."""
    return Outcome(error=ErrorInfo(code=code, message=message, retryable=retryable)).model_dump_json()


DAMAGED = "its record in Redis is damaged; submit the job again under another id"
CANCELLED = failure(ErrorCode.CANCELLED, "cancelled on request")


@dataclass(frozen=True)
class Progress:
    """Progress of a running job: its stage and, while sampling, the number of steps done."""

    stage: str
    step: int = 0
    total_steps: int = 0


@dataclass(frozen=True)
class Attempt:
    """One ended run of a job; `reason` is `succeeded` or an error code.

    `retries` counts how often the job had been retried by hand before.
    """

    worker: str
    started_at: datetime | None
    ended_at: datetime | None
    reason: str
    retries: int = 0


@dataclass(frozen=True)
class JobRecord:
    """One job: what it asks for, its state, its runs and its outcome."""

    job: EditJob
    state: JobState
    attempts: int
    retries: int
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    worker: str | None
    progress: Progress | None
    cancel_requested: bool
    callback: CallbackState | None
    webhook_id: str | None
    history: tuple[Attempt, ...]
    outcome: Outcome

    @property
    def seconds(self) -> float | None:
        """Seconds from submit to end; None while the job is open."""
        if self.created_at is None or self.finished_at is None:
            return None
        return max(0.0, (self.finished_at - self.created_at).total_seconds())  # the clock may have been set back

    @cached_property
    def result(self) -> EditResult:
        """The result of the contract; final once the state is terminal."""
        return EditResult(
            **self.outcome.model_dump(),
            job_id=self.job.id,
            state=self.state,
            batch=self.job.batch,
            seed=self.job.params.seed,
            params=self.job.params.without_secrets(),
            attempts=self.attempts,
            metadata=self.job.metadata,
        )

    def event(self) -> JobEvent:
        """The body of the callback for the job's end.

        Raises:
            ValueError: the job has not ended.
        """
        if not self.state.is_terminal or self.finished_at is None:
            raise ValueError(f"job {self.job.id} is {self.state}: there is no event to report")
        return self._event(self.state, self.finished_at)

    def news(self, event: str, timestamp: datetime) -> JobEvent:
        """The body of a callback for one of `NEWS` of a running job."""
        return self._event(event, timestamp, progress=asdict(self.progress) if self.progress else None)

    def _event(self, name: str, timestamp: datetime, **more: Any) -> JobEvent:
        receiver = host_of(self.job.callback.url) if self.job.callback else ""
        return JobEvent.model_validate(
            {"type": f"edit.{name}", "receiver": receiver, "timestamp": timestamp, "data": self.result, **more}
        )


def parse_event(body: bytes) -> JobEvent:
    """Read the body of a callback, also one of a newer version.

    Raises:
        ValueError: it is no such body.
    """
    item = json.loads(body)
    if isinstance(item, dict) and isinstance(item.get("data"), dict):
        item["data"] = _with_known_code(item["data"])
    return JobEvent.model_validate(item, extra="ignore")


def parse_record(job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """Parse the fields of a job's hash; a damaged one says so in its outcome, and keeps nobody from reading others."""
    try:
        return _parse(job_id, fields)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return _damaged(job_id, fields)


def _damaged(job_id: str, fields: Mapping[str, str]) -> JobRecord:
    """What is certain of a record that somebody has written to."""
    error = ErrorInfo(code=ErrorCode.INTERNAL, message=DAMAGED, retryable=False)
    return JobRecord(
        job=salvage_job({}, job_id),
        state=_state({"state": "", **fields}),
        attempts=0,
        retries=0,
        created_at=None,
        started_at=None,
        finished_at=None,
        worker=None,
        progress=None,
        cancel_requested="cancel" in fields,
        callback=None,
        webhook_id=fields.get("webhook"),
        history=(),
        outcome=Outcome(error=error),
    )


def _parse(job_id: str, fields: Mapping[str, str]) -> JobRecord:
    progress = fields.get("progress")
    outcome = fields.get("outcome")
    return JobRecord(
        job=_job(job_id, fields["job"]),
        state=_state(fields),
        attempts=int(fields["attempts"]),
        retries=int(fields.get("retries", 0)),
        created_at=_time(fields.get("created_at")),
        started_at=_time(fields.get("started_at")),
        finished_at=_time(fields.get("finished_at")),
        worker=fields.get("worker"),
        progress=_progress(json.loads(progress)) if progress else None,
        cancel_requested="cancel" in fields,
        callback=cast("CallbackState | None", fields.get("callback")),
        webhook_id=fields.get("webhook"),
        history=tuple(_attempt(item) for item in json.loads(fields.get("history", "[]"))),
        outcome=_outcome(json.loads(outcome)) if outcome else Outcome(),
    )


def _job(job_id: str, text: str) -> EditJob:
    try:
        return EditJob.model_validate_json(text, extra="ignore")
    except ValidationError:
        return salvage_job(json.loads(text), job_id)


def _attempt(item: Mapping[str, Any]) -> Attempt:
    return Attempt(item["worker"], _time(item["started_at"]), _time(item["ended_at"]), item["reason"], item["retries"])


def _state(fields: Mapping[str, str]) -> JobState:
    try:
        return JobState(fields["state"])
    except ValueError:
        return JobState.FAILED if fields.get("finished_at") else JobState.RUNNING


def _progress(item: Mapping[str, Any]) -> Progress:
    return Progress(item["stage"], item.get("step", 0), item.get("total_steps", 0))


def _outcome(item: dict[str, Any]) -> Outcome:
    return Outcome.model_validate(_with_known_code(item), extra="ignore")


def _with_known_code(item: dict[str, Any]) -> dict[str, Any]:
    error = item.get("error")
    if error and error.get("code") not in set(ErrorCode):
        error |= {"code": ErrorCode.INTERNAL, "message": f"{error.get('code')}: {error.get('message')}"}
    return item


def _time(microseconds: str | None) -> datetime | None:
    return datetime.fromtimestamp(int(microseconds) / 1e6, UTC) if microseconds else None
