"""Description of this machine, for records of trainings and results of benchmarks."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

GPU_FIELDS = {"gpu": "name", "gpu_memory": "memory.total", "driver": "driver_version"}  # nvidia-smi's names


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system and, if there is one, the first GPU."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    gpus = output_of("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader")
    return machine | describe_gpu(gpus)


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
