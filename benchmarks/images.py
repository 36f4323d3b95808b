"""An image to edit, and distances between the results of two engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kontext.config import Resolution


def noise_image(size: Resolution) -> Image.Image:
    """The same noise at every call; size is width and height in pixels."""
    draw = torch.Generator().manual_seed(1)
    return Image.fromarray(torch.randint(0, 256, (*reversed(size), 3), generator=draw, dtype=torch.uint8).numpy())


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """L2 norm of the difference, relative to that of `theirs`."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.2e}")


def pixels(image: Image.Image) -> Any:
    """Values of 0 to 255 whose differences have a sign."""
    return np.asarray(image).astype(int)


def pixel_difference(ours: Image.Image, theirs: Image.Image) -> dict[str, float]:
    """Largest and mean difference of two images, in steps of 255."""
    difference = np.abs(pixels(ours) - pixels(theirs))
    return {"largest": int(difference.max()), "mean": round(float(difference.mean()), 4)}
