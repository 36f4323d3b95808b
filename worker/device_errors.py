"""What an exception of torch says about the device: memory that was not enough, or a device that is lost.

Torch is asked only when an engine has loaded it: stand-in engines do without. Its `AcceleratorError` carries the number
that CUDA gave; libraries (cuBLAS, cuDNN, Triton) and the compiler raise a plain RuntimeError with a name inside.
"""

from __future__ import annotations

import sys

OUT_OF_MEMORY = 2
LOST = frozenset({46, 100, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 721, 805, 806, 807, 810, 999})
"""Numbers after which every later call of the process fails as well (driver_types.h of CUDA 13)."""

SIGNS_OF_LITTLE_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # a handle needs memory, and cuBLAS says no more when there is none
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
)
SIGNS_OF_LOSS = (
    "illegal memory access",
    "device-side assert",
    "unspecified launch failure",
    "misaligned address",
    "device is lost",
    "uncorrectable ECC",
    "uncorrectable NVLink",
    "Invalid access of peer GPU memory over nvlink",
    "the launch timed out",
    "context is destroyed",
    "hardware stack error",
    "illegal instruction",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "tensor memory not completely freed",
    "busy or unavailable",
    "no CUDA-capable device",
    "MPS client",
    "MPS server",
    "CUDA error: unknown error",
    "Triton Error [CUDA]: unknown error",
    "CUBLAS_STATUS_EXECUTION_FAILED",
    "CUBLAS_STATUS_INTERNAL_ERROR",
    "CUDNN_STATUS_EXECUTION_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR",
)
SIGNS_OF_A_DEVICE = ("CUDA", "CUBLAS", "CUDNN", "CUSOLVER")


def is_out_of_device_memory(error: Exception) -> bool:
    """Whether the device's memory was not enough, or memory that the driver locks for it."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    number = _number_of(error)
    return _has_sign(error, SIGNS_OF_LITTLE_MEMORY) if number is None else number == OUT_OF_MEMORY


def device_is_lost(error: Exception, device: str = "") -> bool:
    """Whether this process can no longer use its device.

    Args:
        device: also tried, where the exception is the device's and leaves the question open.
    """
    if _number_of(error) in LOST:
        return True
    if is_out_of_device_memory(error):
        return not _answers(device)
    return _has_sign(error, SIGNS_OF_LOSS) or (_has_sign(error, SIGNS_OF_A_DEVICE) and not _answers(device))


def _number_of(error: Exception) -> int | None:
    """CUDA's number of the error; None where torch gives none."""
    kind = getattr(sys.modules.get("torch"), "AcceleratorError", None)
    number = getattr(error, "error_code", None) if kind is not None and isinstance(error, kind) else None
    return number if isinstance(number, int) else None


def _has_sign(error: Exception, signs: tuple[str, ...]) -> bool:
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _answers(device: str) -> bool:
    """Whether a CUDA device finishes its work without an error; other devices count as well."""
    torch = sys.modules.get("torch")
    if torch is None or not device.startswith("cuda"):
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
