"""Errors of the job's life, split by what the caller should do.

Error
├── SettingsError       correct an environment variable or option, then start again
├── BrokerError         Redis did not do what was asked
│   ├── BrokerUnavailable   it does not answer, or cannot write for now: repeat the call, ids make it safe
│   └── BrokerRefused       it refuses this call and will again: correct rights, address or the key that is named
├── JobNotFound         the ledger has no such job or batch
└── EditFailure         one job's run ended without a picture; carries an ErrorCode
    ├── RejectJob       the job can never succeed as it stands: fail it now
    ├── RetryJob        the cause may pass: run the job again after a delay
    │   └── Outage          of a store or a host: run again for minutes, without spending an attempt
    ├── AbortJob        someone asked the run to end
    │   ├── Cancelled       the user: the job becomes `cancelled`
    │   ├── HandBack        the worker is draining: the job goes back to the queue, the attempt is not counted
    │   └── LeaseLost       another worker holds the job: drop this run, change nothing
    └── StopWorker      this process cannot serve any job: let go of the job, then exit
"""

from __future__ import annotations

from enum import StrEnum

from jobs.shown import hide_secrets, one_line


class ErrorCode(StrEnum):
    """The kind of failure, for programs; the message beside it is for people."""

    INVALID_JOB = "invalid_job"
    INPUT_NOT_FOUND = "input_not_found"
    INPUT_FORBIDDEN = "input_forbidden"
    INPUT_UNREACHABLE = "input_unreachable"
    INPUT_TOO_LARGE = "input_too_large"
    INPUT_NOT_AN_IMAGE = "input_not_an_image"
    OUTPUT_FORBIDDEN = "output_forbidden"
    OUTPUT_NOT_FOUND = "output_not_found"
    OUTPUT_UNAVAILABLE = "output_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    ENGINE_FAILED = "engine_failed"
    WORKER_LOST = "worker_lost"
    CANCELLED = "cancelled"
    INTERNAL = "internal_error"


class Error(Exception):
    """Base of everything this package raises on purpose; the message is one line that says what to do."""

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class SettingsError(Error):
    """Raised when an environment variable or option has an invalid value."""


class BrokerError(Error):
    """Base of what Redis does instead of answering."""


class BrokerUnavailable(BrokerError):
    """Raised when Redis cannot be reached, or cannot write for now; a call may be repeated, ids make it safe."""


class BrokerRefused(BrokerError):
    """Raised when Redis refuses a call that it would refuse again: missing rights, a key of another type."""


class JobNotFound(Error):
    """Raised when the ledger knows no job or batch of that name."""


class EditFailure(Error):
    """Base of what ends one run of a job without a picture.

    The message goes to whoever sent the job and to its receiver: secrets of URLs are taken out.

    Args:
        reason: what is wrong; all that strangers are told, who call over HTTP.
        remedy: what the operator can do about it.
    """

    retryable = False

    def __init__(self, code: ErrorCode, reason: str, remedy: str = "") -> None:
        super().__init__(hide_secrets(f"{reason}; {remedy}" if remedy else reason))
        self.code = code
        self.message = str(self)
        self.reason, self.remedy = one_line(hide_secrets(reason)), remedy


class RejectJob(EditFailure):
    """Raised when the job as it stands can never succeed."""


class RetryJob(EditFailure):
    """Raised when the same job may succeed later."""

    retryable = True


class Outage(RetryJob):
    """Raised when a store or an input's host is unavailable, through no fault of the job."""


class AbortJob(EditFailure):
    """Base of the requests to end a run between two steps."""


class Cancelled(AbortJob):
    """Raised when the user has cancelled the job."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.CANCELLED, "cancelled on request")


class HandBack(AbortJob):
    """Raised when the worker shuts down and the job should go on elsewhere."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(ErrorCode.WORKER_LOST, "the worker is shutting down; the job goes back to the queue")


class LeaseLost(AbortJob):
    """Raised when the ledger has given the job to another worker."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(ErrorCode.WORKER_LOST, "the lease was lost; another worker has the job")


class StopWorker(EditFailure):
    """Raised when this process cannot go on, as after a broken CUDA context."""

    retryable = True
