"""The full-size model with random weights on this machine's GPU: is it right, how fast is it, what memory does it take.

    python -m benchmarks.gpu [--vs official] [--vs diffusers] [--device cuda] [--folder /dev/shm]

Writes the model (34 GB) to a folder, then measures, each in a process of its own: the speed of large products, edits of
a shallow model against a CPU in float32, edits of the whole model resident, compiled and not, and with offload at
several budgets, whose pictures are compared. Needs PyTorch, safetensors, einops, transformers, sentencepiece, Pillow,
numpy, and no network; for `--vs diffusers` that package too, for `--vs official` the code in third_party/flux1. The
result goes to benchmarks/results; `python -m benchmarks.gpu.table` brings it into the documentation.

`--tiny --device cpu` tries all of it out in a minute; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import report
from benchmarks.gpu.measurement import measure
from benchmarks.gpu.scale import GIB, SCALES, Scale

MODEL_BYTES = 36e9
RIVALS: dict[str, dict[str, dict[str, Any]]] = {
    "official": {"official": {"engine": "official"}},
    "diffusers": {
        "diffusers": {"engine": "diffusers", "compile": False},
        "diffusers, blocks compiled": {"engine": "diffusers", "compile": True},
    },
}
TIMEOUT_SECONDS = 300.0


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    scale = SCALES["tiny" if options.tiny else "full"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        check_room(Path(folder), scale)
        figures = measure_all(Path(folder), scale, options)
    name = result_name(options.device)
    path = report.write_result(name, {"gpu_benchmark": scale.name, **figures}, options.results)
    sys.stdout.write(f"{path.read_text()}{path}\n")
    if failures := failed(figures):
        raise SystemExit(f"failed: {', '.join(failures)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark out")
    parser.add_argument("--vs", action="append", choices=[*RIVALS], default=[], help="measure this too")
    parser.add_argument("--folder", type=Path, help="where the model is written; default: that for temporary files")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where the result goes")
    return parser.parse_args(arguments)


def check_room(folder: Path, scale: Scale) -> None:
    free = shutil.disk_usage(folder).free
    if scale.name == SCALES["full"].name and free < MODEL_BYTES:
        raise SystemExit(
            f"{folder} has {free / 1e9:.0f} GB free, the model takes {MODEL_BYTES / 1e9:.0f}; give --folder another"
        )


def measure_all(folder: Path, scale: Scale, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every measurement, under its name."""
    common = {"scale": "tiny" if options.tiny else "full", "device": options.device, "folder": str(folder)}
    figures: dict[str, Any] = {"edit": {"pixels": scale.pixels, "steps": scale.steps}}
    for what in ("model", "ceiling", "check"):
        figures[what] = tell(what, measure({**common, "what": what}, TIMEOUT_SECONDS))
    if "error" in figures["model"]:
        return figures
    modes = {}
    for name, mode in edit_modes(scale, options.vs).items():
        modes[name] = tell(name, measure({**common, "what": "edits", "name": name, **mode}, TIMEOUT_SECONDS))
        modes[name] |= compare_pictures(folder / f"{name}.png", folder / "resident.png")
    return {**figures, "modes": modes}


def edit_modes(scale: Scale, rivals: list[str]) -> dict[str, dict[str, Any]]:
    """Ways of running the model; the resident one, to which the others are compared, comes first."""
    usual = {"engine": "native", "budget_bytes": None, "compile": None, "jobs": scale.few_jobs}
    modes: dict[str, dict[str, Any]] = {
        "resident": {**usual, "jobs": scale.jobs},
        "resident, not compiled": {**usual, "compile": False},
    }
    for budget in scale.budgets_bytes:
        modes[f"offload {budget / GIB:.0f} GiB"] = {**usual, "budget_bytes": budget}
    return modes | {name: usual | mode for rival in rivals for name, mode in RIVALS[rival].items()}


def compare_pictures(picture: Path, resident: Path) -> dict[str, Any]:
    """How far 8-bit values are from those of the resident model."""
    if not picture.exists() or not resident.exists():
        return {}
    one, other = (np.asarray(Image.open(path)).astype(int) for path in (picture, resident))
    difference = np.abs(one - other)
    return {"largest_pixel_difference": int(difference.max()), "mean_pixel_difference": round(difference.mean(), 4)}


def failed(figures: dict[str, Any]) -> list[str]:
    measured = {**{name: figures[name] for name in ("model", "ceiling", "check")}, **figures.get("modes", {})}
    return [name for name, found in measured.items() if "error" in found or not found.get("is_close", True)]


def result_name(device: str) -> str:
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    return f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}-{datetime.now(UTC):%Y-%m-%d}"


def tell(name: str, figures: dict[str, Any]) -> dict[str, Any]:
    sys.stderr.write(f"{name}: {figures}\n")
    return figures


if __name__ == "__main__":
    main()
