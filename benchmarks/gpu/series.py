"""Measurements one after the other, within a time, each judged; the figures so far are written after every one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.gpu.measurement import Place, measure
from benchmarks.gpu.plan import MODEL, RESIDENT, WARM_LOAD, Measurement, Scale
from benchmarks.images import pixel_difference, pixels
from kontext.attention_kernels import KERNELS

Figures = dict[str, Any]
Measure = Callable[..., Figures]  # as `measure`
LONGEST_SECONDS = 300.0  # of one measurement
LARGEST_OFFLOAD_DIFFERENCE = 0.5  # mean, of 255: the same kernels on the same weights, so that it should be 0
SMALLEST_DEVIATION = 2.0  # of 255: an image of one colour would equal any other of that colour


class TimeBudget:
    """Remaining part of some minutes."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = float("inf") if minutes is None else clock() + 60 * minutes

    def left(self) -> float:
        return max(0.0, self._ends_at - self._clock())

    def timeout(self) -> float:
        """Seconds that one measurement may take."""
        return min(LONGEST_SECONDS, self.left())


def measure_series(
    plan: Iterable[Measurement],
    scale: Scale,
    place: Place,
    budget: TimeBudget,
    write: Callable[[Figures], object],
    measure: Measure = measure,
) -> Figures:
    """Figures of every measurement under its title, those of edits under "modes"; failures under "failed".

    Args:
        write: called with all figures so far after each measurement.
        measure: runs one of them.
    """
    figures: Figures = {
        "gpu_benchmark": scale.name,
        "edit": {"pixels": scale.pixels, "steps": scale.steps},
        "modes": {},
        "failed": {},
    }
    for measurement in plan:
        if reason := _reason_to_skip(measurement, figures, place, budget):
            found: Figures = {"skipped": reason}
        else:
            found = _measure_one(measurement, place, budget, measure)
        section = figures["modes"] if measurement.has_edits else figures
        section[measurement.title] = found
        if wrong := "; ".join(complaints(found)):
            figures["failed"][measurement.title] = wrong
        sys.stderr.write(f"{measurement.title}: {found}\n")
        write(figures)
    return figures


def _reason_to_skip(measurement: Measurement, figures: Figures, place: Place, budget: TimeBudget) -> str:
    written = figures.get(MODEL, {})
    if measurement.needs_model and ("error" in written or "skipped" in written):
        return "the model was not written"
    if measurement.name == WARM_LOAD and not place.figures_path(RESIDENT).exists():
        return "the resident model was not measured before, so that nothing is warm"
    if measurement.seconds > budget.left():
        return f"it takes about {measurement.seconds:.0f} s, and {budget.left():.0f} s were left"
    return ""


def _measure_one(measurement: Measurement, place: Place, budget: TimeBudget, measure: Measure) -> Figures:
    measurement = _with_residents_attention(measurement, place)
    found = measure(measurement, place, budget.timeout())
    is_capped = measurement.mode is not None and measurement.mode.budget_bytes is not None
    if is_capped and "OutOfMemory" in found.get("error", "") and measurement.seconds <= budget.left():
        # The memory that it takes without the cap is worth more than the failure alone.
        found = measure(measurement, place, budget.timeout(), is_capped=False) | {"out_of_memory": found["error"]}
    if measurement.has_edits:
        found |= describe_image(place.image_path(measurement.name), place.image_path(RESIDENT))
    return found


def _with_residents_attention(measurement: Measurement, place: Place) -> Measurement:
    """The same attention kernel in every mode of ours; otherwise their images would differ by that."""
    mode, resident = measurement.mode, place.figures_path(RESIDENT)
    if mode is None or mode.engine != "native" or measurement.name in (RESIDENT, WARM_LOAD) or not resident.exists():
        return measurement
    kernel = json.loads(resident.read_text()).get("attention")
    return replace(measurement, mode=replace(mode, attention=kernel)) if kernel in KERNELS else measurement


def describe_image(image: Path, resident: Path) -> dict[str, Any]:
    """Spread of an image's 8-bit values, and their distance from those of the resident model."""
    if not image.exists():
        return {}
    values = pixels(Image.open(image))
    figures: dict[str, Any] = {
        "image_deviation": round(float(values.std()), 2),
        "clipped_share": round(float(((values == 0) | (values == 255)).mean()), 4),
    }
    if resident.exists():
        difference = pixel_difference(Image.open(image), Image.open(resident))
        figures |= {f"{name}_pixel_difference": value for name, value in difference.items()}
    return figures


def complaints(figures: dict[str, Any]) -> Iterator[str]:
    """Faults of a measurement: error, image, memory, exactness. A skipped one has none."""
    if "error" in figures:
        yield str(figures["error"])
    if not figures.get("is_close", True):
        yield "too far from what the CPU computes"
    if not figures.get("is_finite", True):
        yield "not every value of the image is a number"
    if "compiler_failed" in figures:
        yield "nothing was compiled: the log says why"
    if figures.get("image_deviation", SMALLEST_DEVIATION) < SMALLEST_DEVIATION:
        yield f"the image is flat: its standard deviation is {figures['image_deviation']} of 255"
    if (budget := figures.get("budget_gib")) is None:
        return
    if "out_of_memory" in figures:
        yield "it did not fit the budget, and was measured without the limit on torch's allocator"
    if (difference := figures.get("mean_pixel_difference", 0)) > LARGEST_OFFLOAD_DIFFERENCE:
        yield f"its image is {difference} of 255 from the resident one on average"
    if (peak := figures.get("peak_driver_gib", 0)) > budget:
        yield f"{peak} GiB were in use, the budget is {budget} GiB"
