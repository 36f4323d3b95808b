"""An image to edit, and distances between the results of two engines."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kontext.config import Resolution

MOST_DECIBELS = 100.0  # PSNR of identical images


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


def psnr_db(ours: Image.Image, theirs: Image.Image) -> float:
    """Peak signal-to-noise ratio of two images in dB, over all pixels and channels; at most 100."""
    square = float(((pixels(ours) - pixels(theirs)) ** 2).mean())
    return round(min(MOST_DECIBELS, 20 * math.log10(255) - 10 * math.log10(max(square, 1e-10))), 1)


def ssim(ours: Image.Image, theirs: Image.Image) -> float:
    """Structural similarity of two images, mean over all windows and channels; 1 for identical ones.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity", equation 13,
    with its Gaussian window of 11x11 pixels.
    """
    x, y = (torch.from_numpy(pixels(image)).double().movedim(2, 0).unsqueeze(1) for image in (ours, theirs))
    bell = torch.exp(-(((torch.arange(11) - 5) / 1.5) ** 2) / 2).double()
    window = (bell.outer(bell) / bell.sum() ** 2)[None, None]

    def mean(values: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(values, window)

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # keep the quotient finite where an image is black or even
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    return round(float(similarity.mean()), 4)
