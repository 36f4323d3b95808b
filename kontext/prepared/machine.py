"""Facts by which one start is like another: what was prepared for other facts is not used."""

from __future__ import annotations

import hashlib
import platform
import sys
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from kontext.attention_kernels import candidates
from kontext.options import EngineOptions

PACKAGE = Path(__file__).parents[1]
DISTRIBUTION = "kontext-edits"
DRIVER = Path("/sys/module/nvidia/version")
PROCESSOR = Path("/proc/cpuinfo")
WITHOUT_EFFECT = ("device", "dtype", "image_options", "cache_bytes", "lora_bytes", "prepared")
"""Options that change nothing of what is prepared, and those that stand among the facts as what they have led to."""


def facts_of(device: torch.device, dtype: torch.dtype, fingerprint: str, options: EngineOptions) -> dict[str, str]:
    """Everything on which choices and compiled code may depend, in words.

    Args:
        fingerprint: of the model's files.
    """
    chosen = {field.name: getattr(options, field.name) for field in fields(options)}
    return {
        "model": fingerprint,
        "dtype": str(dtype),
        **{name: str(value) for name, value in chosen.items() if name not in WITHOUT_EFFECT},
        "version": _version(DISTRIBUTION),
        "code": _code(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": " ".join((sys.platform, platform.machine(), *platform.libc_ver())),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": device.type,
        **(_gpu(device) if device.type == "cuda" else _processor()),
    }


def _gpu(device: torch.device) -> dict[str, str]:
    """Facts of a CUDA GPU, and of what is between it and torch; a slice of a GPU (MIG) has a name of its own."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "processors": str(properties.multi_processor_count),
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "driver": DRIVER.read_text().strip() if DRIVER.is_file() else "unknown",
        "kernels": " ".join(candidates()),
    }


def _processor() -> dict[str, str]:
    """Facts of the CPU: the compiler uses all its instructions, and writes loops for its number of threads."""
    instructions = hashlib.sha256(_processor_line("flags").encode()).hexdigest()[:8]
    return {
        "name": f"{_processor_line('model name')} ({instructions})",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }


def _processor_line(name: str) -> str:
    if not PROCESSOR.is_file():
        return platform.processor()
    lines = (line.partition(":") for line in PROCESSOR.read_text().splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


@cache
def _code() -> str:
    """Hash of this package's source, which changes between two commits of one version."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"
