"""Choice of the device, and the calls that differ between devices."""

from __future__ import annotations

import torch

from kontext.errors import DeviceError


def choose_device(wanted: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into an available device.

    "auto" prefers CUDA, then Apple's GPU if it supports all that the model needs, then the CPU.

    Raises:
        DeviceError: the device is unknown or not available.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _mps_works() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise DeviceError(f"device is {wanted!r}, expected auto, cpu, cuda, cuda:<number> or mps") from None
    _check_present(device)
    return device


def _check_present(device: torch.device) -> None:
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(f"device is {device}, but torch {torch.__version__} finds {count} CUDA GPUs; try auto")
    elif device.type == "mps":
        if not _mps_works():
            raise DeviceError(f"device is mps, but torch {torch.__version__} finds no usable Apple GPU; try auto")
    elif device.type != "cpu":
        raise DeviceError(f"device is {device}, expected auto, cpu, cuda, cuda:<number> or mps")


def _mps_works() -> bool:
    """Check Apple's GPU for bfloat16 and complex numbers, which older systems lack and the model needs."""
    if not torch.backends.mps.is_available():
        return False
    try:
        one = torch.ones(2, 2, device="mps")
        (one.bfloat16() @ one.bfloat16()).float() * torch.view_as_complex(one)
    except (RuntimeError, TypeError):
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all launched work; on a CPU nothing is left to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_cached_memory(device: torch.device) -> None:
    """Return the unused memory that torch's allocator caches to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
