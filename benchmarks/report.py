"""Command line and result of a benchmark: one JSON file each, with code, machine and versions beside the figures."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.machine import describe_machine, output_of

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).parent / "results"
LIBRARIES = (
    *("celery", "kombu", "redis", "pydantic"),
    *("torch", "triton", "flash-attn", "flash-attn-3"),
    *("transformers", "safetensors", "einops", "numpy", "diffusers"),
)
CHECKOUT = Path(__file__).parent.parent
COMMIT_VARIABLE = "BENCHMARK_COMMIT"


def parser(document: str | None, **counts: int) -> argparse.ArgumentParser:
    """Command line of a benchmark: an option for each count, with its default; help is the module's docstring."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in counts.items():
        made.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    return made


def publish(name: str, figures: dict[str, Any], folder: Path = RESULTS, run: dict[str, Any] | None = None) -> None:
    """Write the result and print it."""
    path = write_result(name, figures, folder, run)
    sys.stdout.write(f"{path.read_text()}{path}\n")


def write_result(name: str, figures: dict[str, Any], folder: Path = RESULTS, run: dict[str, Any] | None = None) -> Path:
    """Write `<name>.json` into the folder and return its path; figures carry their unit in their name.

    Args:
        run: from `describe_run`, if one run writes more than once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.json", folder / f"{name}.json.part"
    part.write_text(json.dumps({"benchmark": name, **(run or describe_run()), "figures": figures}, indent=2) + "\n")
    part.replace(path)  # a run killed meanwhile leaves the result before
    return path


def describe_run(
    commit: str | None = None, checkout: Path = CHECKOUT, device: torch.device | None = None
) -> dict[str, Any]:
    """Time, code, machine and versions: the head of every result.

    Args:
        commit: if it is known otherwise; None for BENCHMARK_COMMIT, else what git says.
        device: what is measured; None for no GPU, or the first one.
    """
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **describe_code(commit or os.environ.get(COMMIT_VARIABLE), checkout),
        "machine": describe_machine(device),
        "versions": {"python": platform.python_version(), **_versions(), **_cuda_versions()},
    }


def describe_code(commit: str | None, checkout: Path) -> dict[str, Any]:
    """The commit and whether files differ from it; None for what is unknown: a copied tree has no history."""
    # A folder above may be another repository, which git would describe.
    head = output_of("git", "-C", str(checkout), "rev-parse", "--short", "HEAD") if (checkout / ".git").exists() else ""
    changed = head and output_of("git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or head or None, "has_local_changes": bool(changed) if head else None}


def _versions() -> dict[str, str]:
    installed = {}
    for library in LIBRARIES:
        try:
            installed[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _cuda_versions() -> dict[str, str]:
    """Versions that torch was built with, if this process has torch; importing it takes seconds."""
    torch = sys.modules.get("torch")
    if torch is None or torch.version.cuda is None:
        return {}
    return {"cuda": torch.version.cuda, "cudnn": str(torch.backends.cudnn.version())}
