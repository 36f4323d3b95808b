"""Description of this machine, for records of trainings and results of benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

GPU_FIELDS = {"gpu": "name", "gpu_memory": "memory.total", "driver": "driver_version"}  # nvidia-smi's names


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, cores this process may use, memory, system and, if there is one, the GPU.

    Args:
        device: what the work runs on; None for the first GPU that nvidia-smi lists.
    """
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    gpus = output_of("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader")
    used = properties_of(device) if device is not None and device.type == "cuda" else {}
    return machine | describe_gpu(gpus) | used


def properties_of(device: torch.device) -> dict[str, str]:
    """Name and memory of a GPU as torch numbers it, which CUDA_VISIBLE_DEVICES changes; for a slice, those of it."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {"gpu": properties.name, "gpu_memory": f"{properties.total_memory // 2**20} MiB"}


def describe_gpu(answer: str) -> dict[str, str]:
    """The first GPU in nvidia-smi's answer, which has a line for each."""
    if not answer:
        return {}
    return dict(zip(GPU_FIELDS, map(str.strip, answer.splitlines()[0].split(",")), strict=False))


def output_of(*command: str) -> str:
    """Output of a program; empty if it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
