"""Where the figures of a benchmark go: one JSON file each, with what they were measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    "celery",
    "kombu",
    "redis",
    "pydantic",
    "torch",
    "triton",
    "flash-attn",
    "flash-attn-3",
    "transformers",
    "safetensors",
    "einops",
    "numpy",
    "diffusers",
)
CHECKOUT = Path(__file__).parent.parent
COMMIT_VARIABLE = "BENCHMARK_COMMIT"
GPU_FIELDS = {"gpu": "name", "gpu_memory": "memory.total", "driver": "driver_version"}  # nvidia-smi's names


def write_result(name: str, figures: dict[str, Any], folder: Path = RESULTS, run: dict[str, Any] | None = None) -> Path:
    """Write `<name>.json` into the folder and return its path; figures carry their unit in their name.

    Args:
        run: of `describe_run`, where one run writes more than once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.json", folder / f"{name}.json.part"
    part.write_text(json.dumps({"benchmark": name, **(run or describe_run()), "figures": figures}, indent=2) + "\n")
    part.replace(path)  # whoever is killed meanwhile leaves the result before
    return path


def describe_run(commit: str | None = None, checkout: Path = CHECKOUT) -> dict[str, Any]:
    """When, of what, and where: what every result says.

    Args:
        commit: where it is known otherwise; None for BENCHMARK_COMMIT, else what git says.
    """
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_code(commit or os.environ.get(COMMIT_VARIABLE), checkout),
        "machine": describe_machine(),
        "versions": {"python": platform.python_version(), **_versions(), **_cuda_versions()},
    }


def describe_code(commit: str | None, checkout: Path) -> dict[str, Any]:
    """The commit and whether files differ from it, None for what cannot be known: a copied tree has no history."""
    # A folder above may be another repository, which git would tell of.
    head = _said("git", "-C", str(checkout), "rev-parse", "--short", "HEAD") if (checkout / ".git").exists() else ""
    changed = head and _said("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or head or None, "has_local_changes": bool(changed) if head else None}


def describe_machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, system and, where there is one, the first GPU."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
    gpus = _said("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader")
    return machine | describe_gpu(gpus)


def describe_gpu(answer: str) -> dict[str, str]:
    """The first GPU in nvidia-smi's answer, which has a line for each."""
    if not answer:
        return {}
    return dict(zip(GPU_FIELDS, map(str.strip, answer.splitlines()[0].split(",")), strict=False))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions() -> dict[str, str]:
    installed = {}
    for library in LIBRARIES:
        try:
            installed[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _cuda_versions() -> dict[str, str]:
    """Those that torch was built with, where this process has torch; it takes seconds to import."""
    torch = sys.modules.get("torch")
    if torch is None or torch.version.cuda is None:
        return {}
    return {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
