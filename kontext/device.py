"""Choice of the device, and the calls that differ between devices."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from kontext.errors import DeviceError

NEEDED_CAPABILITY = (8, 0)  # Ampere: earlier GPUs compute bfloat16 without tensor cores, and new builds leave them out

log = logging.getLogger(__name__)


def choose_device(wanted: str) -> torch.device:
    """Turn "auto", "cpu", "cuda", "cuda:1" or "mps" into an available device.

    "auto" prefers a CUDA GPU that is new enough, then Apple's GPU if it has all that the model needs, then the CPU.

    Raises:
        DeviceError: the device is unknown, not available, or too old.
    """
    if wanted == "auto":
        return torch.device("cuda" if _cuda_works() else "mps" if _mps_works() else "cpu")
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
        if reason := too_old(device):
            raise DeviceError(f"{reason}; take another GPU, or the device cpu")
    elif device.type == "mps":
        if not _mps_works():
            raise DeviceError(f"device is mps, but torch {torch.__version__} finds no usable Apple GPU; try auto")
    elif device.type != "cpu":
        raise DeviceError(f"device is {device}, expected auto, cpu, cuda, cuda:<number> or mps")


def _cuda_works() -> bool:
    if not torch.cuda.is_available():
        return False
    if reason := too_old(torch.device("cuda")):
        log.warning("gpu_left_out reason=%s", reason)
    return not reason


def too_old(gpu: torch.device) -> str:
    """What a GPU lacks; empty for one that can."""
    has = torch.cuda.get_device_capability(gpu)
    if has >= NEEDED_CAPABILITY:
        return ""
    name = torch.cuda.get_device_name(gpu)
    needed = "{}.{}".format(*NEEDED_CAPABILITY)
    return f"{name} has compute capability {has[0]}.{has[1]}, but bfloat16 needs {needed} (A100, RTX 30) or later"


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


def default_dtype(device: torch.device, kernels: str, precision: str) -> torch.dtype:
    """Dtype of a model for which none was asked.

    bfloat16, except on a CPU without bfloat16 instructions: torch multiplies bfloat16 matrices there in plain loops,
    86 times as slowly as float32 ones (0.8 and 71 GFLOP/s, one core of an AMD EPYC with AVX2), and float32 is the more
    exact. `kernels="reference"` keeps the official code's bits at that price; fp8 rounds to bfloat16 by definition.
    """
    is_slow = device.type == "cpu" and not cpu_computes_in_bfloat16()
    return torch.float32 if is_slow and kernels != "reference" and precision == "bf16" else torch.bfloat16


def cpu_computes_in_bfloat16() -> bool:
    """Report whether oneDNN has bfloat16 kernels for this processor (AVX-512, AMX, or Arm's extension)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all launched work; on a CPU nothing is left to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a device in bytes, as its driver counts it."""

    total: int
    free: int
    reserved: int  # held by torch's allocator in this process, for tensors or for later ones
    allocated: int = 0  # of it for tensors

    @property
    def other(self) -> int:
        """What is neither free nor torch's: this process's context and libraries, and other processes."""
        return self.total - self.free - self.reserved

    @property
    def available(self) -> int:
        """What tensors of this process may still take."""
        return self.free + self.reserved - self.allocated


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory of a CUDA device now; None for other devices."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total, free, torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device))


def record_event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """Mark the end of a stream's work so far; who waits for it sleeps, where CUDA's usual events keep a core busy."""
    event: torch.cuda.Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    stream.record_event(event)
    return event


def release_cached_memory(device: torch.device) -> None:
    """Return the unused memory that torch's allocator caches to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
