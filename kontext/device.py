"""Which device a model runs on."""

from __future__ import annotations

import torch

from kontext.errors import DeviceError


def choose_device(wanted: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into a device that is there.

    "auto" is CUDA where there is a GPU, else Apple's GPU where it can do what the model needs, else the CPU.

    Raises:
        DeviceError: the device asked for does not exist here.
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
    """Older systems lack bfloat16 or complex numbers, which the model needs."""
    if not torch.backends.mps.is_available():
        return False
    try:
        one = torch.ones(2, 2, device="mps")
        (one.bfloat16() @ one.bfloat16()).float() * torch.view_as_complex(one)
    except (RuntimeError, TypeError):
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait until everything that was launched is done; a CPU has always done it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def release_cached_memory(device: torch.device) -> None:
    """Give back what torch's allocator keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
