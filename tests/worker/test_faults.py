"""What an engine's exception means, and when a worker suspects its own device."""

from __future__ import annotations

import pytest

from jobs.errors import Cancelled, EditFailure, ErrorCode, RejectJob, RetryJob, StopWorker
from kontext import NotANumber, RequestError
from worker.device_errors import LOST, OUT_OF_MEMORY
from worker.faults import FaultStreak, classify, is_out_of_memory
from worker.standin import out_of_memory

ENGINE_FAILED = RetryJob(ErrorCode.ENGINE_FAILED, "the engine raised")


def refused_by_the_machine() -> Exception:
    """What torch raises when the machine has no memory left for it."""
    import torch

    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**48, dtype=torch.uint8)
    return refusal.value


def accelerator_error(words: str, number: int) -> Exception:
    """What torch raises for an error of CUDA."""
    import torch

    error = torch.AcceleratorError(words)
    error.error_code = number
    return error


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (out_of_memory(), RejectJob, ErrorCode.OUT_OF_MEMORY),
        (MemoryError(), RetryJob, ErrorCode.OUT_OF_MEMORY),
        (refused_by_the_machine(), RetryJob, ErrorCode.OUT_OF_MEMORY),
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


def test_every_error_after_which_cuda_is_lost_ends_the_worker_by_its_number() -> None:
    # Words that say nothing, so that the number decides.
    assert all(type(classify(accelerator_error("CUDA error: words", number))) is StopWorker for number in LOST)
    assert type(classify(accelerator_error("CUDA error: no kernel image is available", 209))) is RetryJob


@pytest.mark.parametrize(
    "words",
    [
        *("an illegal memory access was encountered", "device-side assert triggered", "unspecified launch failure"),
        *("the launch timed out and was terminated", "an illegal instruction was encountered", "misaligned address"),
        *("invalid program counter", "hardware stack error", "unknown error", "uncorrectable ECC error encountered"),
        *("CUDA-capable device(s) is/are busy or unavailable", "no CUDA-capable device is detected"),
    ],
)
def test_every_error_after_which_cuda_is_lost_ends_the_worker_by_its_words(words: str) -> None:
    assert classify(RuntimeError(f"CUDA error: {words}")).code is ErrorCode.WORKER_LOST
    assert classify(RuntimeError(f"Triton Error [CUDA]: {words}")).code is ErrorCode.WORKER_LOST


@pytest.mark.parametrize(
    "name",
    [
        *("CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR"),
        *("CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR"),
    ],
)
def test_a_library_whose_kernels_fail_ends_the_worker(name: str) -> None:
    assert type(classify(RuntimeError(f"CUDA error: {name} when calling `cublasGemmEx(...)`"))) is StopWorker


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_every_form_of_too_little_memory_is_run_once_more_with_offload_and_then_refused(error: Exception) -> None:
    assert is_out_of_memory(error)
    failure = classify(error)
    assert (type(failure), failure.code) == (RejectJob, ErrorCode.OUT_OF_MEMORY)


def test_memory_that_the_driver_refuses_is_known_by_its_number() -> None:
    assert is_out_of_memory(accelerator_error("CUDA error: words", OUT_OF_MEMORY))


@pytest.mark.parametrize(
    ("error", "is_asked"),
    [
        (RuntimeError("CUDA error: invalid argument"), True),
        (RuntimeError("CUDA out of memory"), True),  # a lost device may say so, too
        (ValueError("not enough values"), False),
        (RuntimeError("anything"), False),
    ],
)
def test_a_device_that_no_longer_answers_ends_the_worker(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_asked: bool
) -> None:
    import torch

    asked: list[str] = []

    def fail(device: str) -> None:
        asked.append(device)
        raise RuntimeError("CUDA error: words")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)

    assert (type(classify(error, "cuda:1")) is StopWorker) is is_asked
    assert asked == ["cuda:1"] * is_asked
    assert type(classify(error, "cpu")) is not StopWorker


def test_words_of_a_request_are_no_sign_of_a_broken_device() -> None:
    assert type(classify(RequestError("loras: CUDA error: unknown error.safetensors is no LoRA"))) is RejectJob


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
