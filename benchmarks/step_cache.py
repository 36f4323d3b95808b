"""Distance of edits with skipped steps from exact ones, and the share of steps that is computed, on a CPU.

    python -m benchmarks.step_cache

Edits of the bundled tiny model from `examples/data.csv` and of two random models, in float32 and 30 steps, with the
step cache at several thresholds. Beside each threshold stands the exact edit in as many steps as the cache computed,
which costs as much: a cache is worth having where it is nearer. Takes ten minutes.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image

import kontext
from benchmarks.accuracy import IMAGE, models
from benchmarks.images import psnr_db, ssim
from benchmarks.report import parser, publish
from kontext import EditRequest, StepCache

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS = 30
THRESHOLDS = {
    "tiny": (0.08, 0.12, 0.2),
    # The first block of a random model changes by more than half from step to step.
    "random 1": (0.08, 1.0),
    "random 2": (0.08, 1.0),
}


def measure(rows: int) -> dict[str, Any]:
    figures: dict[str, Any] = {"steps": STEPS, "rules": str(StepCache()), "edits_of_tiny": rows}
    with tempfile.TemporaryDirectory() as folder:
        for name, path in models(Path(folder)).items():
            requests = examples(rows) if name == "tiny" else [edit_of_noise()]
            model = kontext.load(path, device="cpu", dtype=torch.float32)
            figures[name] = [*compared(model, requests, THRESHOLDS[name])]
    return figures


def examples(rows: int) -> list[EditRequest]:
    """Some of the bundled examples, spread over their table."""
    with (EXAMPLES / "data.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [
        EditRequest((opened(EXAMPLES / row["image"]),), row["prompt"], num_inference_steps=STEPS, seed=int(row["seed"]))
        for row in table[:: -(-len(table) // rows)]
    ]


def edit_of_noise() -> EditRequest:
    return EditRequest((opened(IMAGE),), "Remove the logo", num_inference_steps=STEPS, seed=5)


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return kontext.to_rgb(image)


def compared(model: kontext.Kontext, requests: Sequence[EditRequest], thresholds: Sequence[float]) -> Any:
    """A line for each threshold, and one for each number of steps that costs as much."""
    exact = [model.run(request).image for request in requests]
    for threshold in thresholds:
        model.step_cache = StepCache(threshold)
        edited = [model.run(request) for request in requests]
        model.step_cache = None
        computed = [result.steps_computed or 0 for result in edited]
        yield said(
            {"threshold": threshold, "steps_computed": round(fmean(computed), 1)}
            | distances([result.image for result in edited], exact)
        )
        if any(n < request.num_inference_steps for n, request in zip(computed, requests, strict=True)):
            fewer = [replace(request, num_inference_steps=n) for request, n in zip(requests, computed, strict=True)]
            yield said(
                {"threshold": None, "steps_computed": round(fmean(computed), 1)}
                | distances([model.run(request).image for request in fewer], exact)
            )


def distances(ours: Sequence[Image.Image], exact: Sequence[Image.Image]) -> dict[str, float]:
    """Means over the images, and the worst."""

    def of_each(measured: Callable[[Image.Image, Image.Image], float]) -> list[float]:
        return [measured(*pair) for pair in zip(ours, exact, strict=True)]

    decibels, similarities = of_each(psnr_db), of_each(ssim)
    return {
        "psnr_db": round(fmean(decibels), 1),
        "worst_psnr_db": min(decibels),
        "ssim": round(fmean(similarities), 4),
        "worst_ssim": min(similarities),
    }


def said(figures: dict[str, Any]) -> dict[str, Any]:
    sys.stderr.write(f"{figures}\n")
    return figures


if __name__ == "__main__":
    given = parser(__doc__, rows=4).parse_args()
    publish("step_cache", measure(given.rows))
