"""What an exception from the engine means for the job and for the process."""

from __future__ import annotations

import sys

from jobs.errors import EditFailure, ErrorCode, RejectJob, RetryJob, StopWorker

BROKEN_DEVICE_SIGNS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "device is lost",
    "uncorrectable ECC",
)
"""After one of these the CUDA context is gone: every later call of the process fails as well."""


def classify(error: Exception) -> EditFailure:
    """Say what the worker should do about an exception that a run raised.

    Torch is asked only when an engine has loaded it: stand-in engines do without.
    """
    if isinstance(error, EditFailure):
        return error
    if _is_out_of_memory(error):
        return RejectJob(
            ErrorCode.OUT_OF_MEMORY,
            "the device's memory was not enough for this picture: set DG_FLUX_KONTEXT_OFFLOAD=true or ask for less",
        )
    if any(sign in str(error) for sign in BROKEN_DEVICE_SIGNS):
        return StopWorker(ErrorCode.WORKER_LOST, f"the device is broken: {_first_line(error)}")
    if isinstance(error, ValueError):
        return RejectJob(ErrorCode.INVALID_JOB, _first_line(error))
    if isinstance(error, OSError):
        return RetryJob(ErrorCode.INTERNAL, f"{type(error).__name__}: {_first_line(error)}")
    return RetryJob(ErrorCode.ENGINE_FAILED, f"{type(error).__name__}: {_first_line(error)}")


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:500]
