"""Measurements one after the other, within a time, each judged; what is known so far is written after every one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from benchmarks.gpu.judgement import complaints, describe_picture
from benchmarks.gpu.measurement import Place, measure
from benchmarks.gpu.plan import MODEL, RESIDENT, WARM_LOAD, Measurement, needs_model
from benchmarks.gpu.scale import Scale
from kontext.attention_kernels import KERNELS

Figures = dict[str, Any]
Measure = Callable[..., Figures]  # as `measure`
LONGEST_SECONDS = 300.0  # of one measurement


class TimeBudget:
    """How much of some minutes is left."""

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
    """Figures of every measurement under its title, those of edits under "modes"; what failed is under "failed".

    Args:
        write: called with all figures there are after each measurement.
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
        section = figures["modes"] if _has_edits(measurement) else figures
        section[measurement.title] = found
        if wrong := complaints(found):
            figures["failed"][measurement.title] = "; ".join(wrong)
        sys.stderr.write(f"{measurement.title}: {found}\n")
        write(figures)
    return figures


def _reason_to_skip(measurement: Measurement, figures: Figures, place: Place, budget: TimeBudget) -> str:
    written = figures.get(MODEL, {})
    if needs_model(measurement) and ("error" in written or "skipped" in written):
        return "the model was not written"
    if measurement.name == WARM_LOAD and not place.figures_path(RESIDENT).exists():
        return "the resident model was not measured before, so that nothing is warm"
    if measurement.seconds > budget.left():
        return f"it takes about {measurement.seconds:.0f} s, and {budget.left():.0f} s were left"
    return ""


def _measure_one(measurement: Measurement, place: Place, budget: TimeBudget, measure: Measure) -> Figures:
    measurement = _with_residents_attention(measurement, place)
    found = measure(measurement, place, budget.timeout())
    if _did_not_fit(measurement, found) and measurement.seconds <= budget.left():
        # How much it takes then is worth more than that it failed.
        found = measure(measurement, place, budget.timeout(), is_capped=False) | {"out_of_memory": found["error"]}
    if _has_edits(measurement):
        found |= describe_picture(place.picture_path(measurement.name), place.picture_path(RESIDENT))
    return found


def _has_edits(measurement: Measurement) -> bool:
    return measurement.mode is not None and measurement.mode.jobs > 0


def _did_not_fit(measurement: Measurement, found: Figures) -> bool:
    is_capped = measurement.mode is not None and measurement.mode.budget_bytes is not None
    return is_capped and "OutOfMemory" in found.get("error", "")


def _with_residents_attention(measurement: Measurement, place: Place) -> Measurement:
    """The same attention kernel in every mode of ours, or their pictures would differ by that."""
    mode, resident = measurement.mode, place.figures_path(RESIDENT)
    if mode is None or mode.engine != "native" or measurement.name in (RESIDENT, WARM_LOAD) or not resident.exists():
        return measurement
    kernel = json.loads(resident.read_text()).get("attention")
    return replace(measurement, mode=replace(mode, attention=kernel)) if kernel in KERNELS else measurement
