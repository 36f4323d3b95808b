"""What an engine's exception means, and when a worker suspects its own device."""

from __future__ import annotations

import pytest

from jobs.errors import Cancelled, EditFailure, ErrorCode, RejectJob, RetryJob, StopWorker
from kontext import NotANumber, RequestError
from worker.faults import FaultStreak, classify
from worker.standin import out_of_memory

ENGINE_FAILED = RetryJob(ErrorCode.ENGINE_FAILED, "the engine raised")


def refused_by_the_machine() -> Exception:
    """What torch raises when the machine has no memory left for it."""
    import torch

    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**48, dtype=torch.uint8)
    return refusal.value


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (out_of_memory(), RejectJob, ErrorCode.OUT_OF_MEMORY),
        (MemoryError(), RetryJob, ErrorCode.OUT_OF_MEMORY),
        (refused_by_the_machine(), RetryJob, ErrorCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), StopWorker, ErrorCode.WORKER_LOST),
        (RuntimeError("CUDA error: device-side assert triggered"), StopWorker, ErrorCode.WORKER_LOST),
        (RequestError("width is 17"), RejectJob, ErrorCode.INVALID_JOB),
        (ValueError("not enough values"), RetryJob, ErrorCode.ENGINE_FAILED),
        (NotANumber("the model's picture is not a number"), RetryJob, ErrorCode.ENGINE_FAILED),
        (OSError("no space left"), RetryJob, ErrorCode.INTERNAL),
        (RuntimeError("anything"), RetryJob, ErrorCode.ENGINE_FAILED),
        (Cancelled(), Cancelled, ErrorCode.CANCELLED),
    ],
)
def test_an_exception_is_a_reason_to_reject_to_retry_or_to_stop(
    error: Exception, kind: type[EditFailure], code: ErrorCode
) -> None:
    failure = classify(error)

    assert type(failure) is kind
    assert failure.code is code
    assert "\n" not in failure.message


def test_only_faults_of_the_engine_make_a_streak_and_a_success_ends_it() -> None:
    streak = FaultStreak()
    streak.note("a", ENGINE_FAILED)
    streak.note("b", RejectJob(ErrorCode.INPUT_NOT_FOUND, "no such picture"))
    streak.note("c", RetryJob(ErrorCode.OUT_OF_MEMORY, "a neighbour may have taken it"))
    streak.note("d", Cancelled())
    streak.note("e", ENGINE_FAILED)
    assert streak.length == 2

    streak.note("f", None)

    assert streak.length == 0


@pytest.mark.parametrize(
    ("job_ids", "is_suspicious"), [("abc", True), ("ab", False), ("aaaa", False), ("abab", False), ("aabcd", True)]
)
def test_a_worker_suspects_its_device_when_different_jobs_fail_in_a_row(job_ids: str, is_suspicious: bool) -> None:
    streak = FaultStreak()
    for job_id in job_ids:
        streak.note(job_id, ENGINE_FAILED)

    assert streak.is_suspicious is is_suspicious
