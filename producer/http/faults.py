"""Errors of the door, in the form of OpenAI's API: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jobs.errors import (
    BrokerError,
    BrokerUnavailable,
    EditFailure,
    Error,
    ErrorCode,
    JobNotFound,
    RejectJob,
)
from jobs.shown import hide_secrets, one_line
from producer.errors import JobConflict, QueueFull

log = logging.getLogger(__name__)

RETRY_SECONDS = 10
"""What a caller is told to wait when the queue is full or Redis is away."""

NEVER_AGAIN = {"x-should-retry": "false"}
"""Keeps OpenAI's clients from sending the same request again by themselves."""


class FaultDetail(BaseModel):
    """An error: `message` for people, `code` for programs, `param` names the field that is to blame."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FaultBody(BaseModel):
    """The body of every answer from 400 on."""

    error: FaultDetail


class HttpFault(Exception):
    """Raised to answer a request with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(one_line(message))
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    def response(self) -> Response:
        detail = FaultDetail(message=str(self), type=self._kind, param=self.param, code=self.code)
        return JSONResponse(FaultBody(error=detail).model_dump(), self.status, self.headers)

    @property
    def _kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"


def wrong(param: str, message: str, code: str = "invalid_value") -> HttpFault:
    """A field of the request that cannot be used."""
    return HttpFault(400, code, f"{param}: {message}", param)


def not_found(job_id: str, kind: str = "job") -> HttpFault:
    """The same for what is not there and for what belongs to another caller."""
    return HttpFault(404, "not_found", f"no {kind} {job_id[:128]!r}")


def later(status: int, code: str, message: str, seconds: int = RETRY_SECONDS) -> HttpFault:
    """A fault that passes; `Retry-After` says when to ask again."""
    return HttpFault(status, code, message, headers={"Retry-After": str(seconds)})


def fault_of(error: Exception) -> HttpFault:
    """What an error of the package means for the caller."""
    match error:
        case HttpFault():
            return error
        case JobConflict():
            return HttpFault(409, "idempotency_conflict", str(error), headers=NEVER_AGAIN)
        case QueueFull():
            return later(429, "queue_full", str(error))
        case JobNotFound():
            return HttpFault(404, "not_found", str(error))
        case BrokerUnavailable():
            return later(503, "queue_unavailable", "the queue does not answer; ask again")
        case BrokerError():
            return HttpFault(500, "queue_refused", "the queue refuses the call; its operator can see why")
        case RejectJob(code=ErrorCode.INPUT_TOO_LARGE):
            return HttpFault(413, error.code, error.reason, "image")
        case RejectJob():
            return HttpFault(400, error.code, error.reason, _param_of(error))
        case EditFailure(code=ErrorCode.INPUT_UNREACHABLE):
            return HttpFault(400, error.code, error.reason, "image")
        case EditFailure():
            return later(503, error.code, error.reason)
        case HTTPException():
            phrase = HTTPStatus(error.status_code).phrase.lower()
            return HttpFault(error.status_code, phrase.replace(" ", "_"), error.detail or phrase, headers=error.headers)
        case Error():
            return HttpFault(500, "internal_error", str(error))
    return HttpFault(500, "internal_error", "the server met something that nobody foresaw; its log has the trace")


def _param_of(error: RejectJob) -> str | None:
    if isinstance(error.__cause__, ValidationError):
        return ".".join(str(part) for part in error.__cause__.errors()[0]["loc"]) or None
    return "image" if error.code.startswith("input_") else None


def answer_fault(request: Request, error: Exception) -> Response:
    """The exception handler of the application."""
    fault = fault_of(error)
    if fault.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("fault status=%d code=%s reason=%s", fault.status, fault.code, one_line(hide_secrets(str(error))))
    return fault.response()
