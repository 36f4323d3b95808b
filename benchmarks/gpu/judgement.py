"""What a measurement must hold to, besides ending: pictures, memory, exactness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LARGEST_OFFLOAD_DIFFERENCE = 0.5  # mean, of 255: the same kernels on the same weights, so that it should be 0
SMALLEST_DEVIATION = 2.0  # of 255: a picture of one colour would equal any other of that colour


def describe_picture(picture: Path, resident: Path) -> dict[str, Any]:
    """How a picture's 8-bit values are spread, and how far they are from those of the resident model."""
    if not picture.exists():
        return {}
    values = np.asarray(Image.open(picture)).astype(int)
    figures: dict[str, Any] = {
        "picture_deviation": round(float(values.std()), 2),
        "clipped_share": round(float(((values == 0) | (values == 255)).mean()), 4),
    }
    if resident.exists():
        difference = np.abs(values - np.asarray(Image.open(resident)).astype(int))
        figures |= {
            "largest_pixel_difference": int(difference.max()),
            "mean_pixel_difference": round(float(difference.mean()), 4),
        }
    return figures


def complaints(figures: dict[str, Any]) -> list[str]:
    """What is wrong with a measurement; what was skipped is not."""
    found = [str(figures["error"])] if "error" in figures else []
    if not figures.get("is_close", True):
        found.append("too far from what the CPU computes")
    if not figures.get("is_finite", True):
        found.append("not every value of the picture is a number")
    if "compiler_failed" in figures:
        found.append("nothing was compiled: the log says why")
    if figures.get("picture_deviation", SMALLEST_DEVIATION) < SMALLEST_DEVIATION:
        found.append(f"the picture is flat: its standard deviation is {figures['picture_deviation']} of 255")
    return [*found, *_complaints_of_offload(figures)]


def _complaints_of_offload(figures: dict[str, Any]) -> list[str]:
    budget = figures.get("budget_gib")
    if budget is None:
        return []
    found = []
    if "out_of_memory" in figures:
        found.append("it did not fit the budget, and was measured without torch's allocator being kept to it")
    if (difference := figures.get("mean_pixel_difference", 0)) > LARGEST_OFFLOAD_DIFFERENCE:
        found.append(f"its picture is {difference} of 255 from the resident one on average")
    if (peak := figures.get("peak_driver_gib", 0)) > budget:
        found.append(f"{peak} GiB were in use, the budget is {budget} GiB")
    return found
