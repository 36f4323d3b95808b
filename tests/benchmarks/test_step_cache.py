"""Distances of images, and the comparison of a step cache with edits in fewer steps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import kontext
from benchmarks.images import noise_image, psnr_db, ssim
from benchmarks.step_cache import compared, examples
from kontext import EditRequest
from tests.kontext.golden import MODEL, PICTURE

GREY, LIGHTER = (Image.new("RGB", (32, 24), (value,) * 3) for value in (100, 120))


def test_known_distances() -> None:
    noise = noise_image((32, 24))
    shifted = Image.fromarray(255 - np.asarray(noise))

    # 20 of 255 everywhere: 20 log10(255 / 20). Images without structure differ by their brightness alone.
    assert psnr_db(GREY, LIGHTER) == 22.1
    assert ssim(GREY, LIGHTER) == pytest.approx((2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025), abs=1e-4)
    assert (psnr_db(noise, noise), ssim(noise, noise)) == (100, 1)
    assert ssim(noise, shifted) < -0.5  # the same structure, inverted


def test_a_threshold_stands_beside_the_edit_that_costs_as_much() -> None:
    model = kontext.load(MODEL, device="cpu")
    request = EditRequest((PICTURE,), "Remove the logo", num_inference_steps=8, seed=5)

    exact, cached, fewer = compared(model, [request], [0.0, 5.0])  # warm-up 4, 2 at the end, both between are skipped

    assert (exact["threshold"], exact["psnr_db"], exact["ssim"]) == (0, 100, 1)
    assert (cached["threshold"], fewer["threshold"]) == (5, None)
    assert cached["steps_computed"] == fewer["steps_computed"] == 6
    assert 0 < cached["worst_psnr_db"] <= cached["psnr_db"] < 100
    assert 0 < fewer["psnr_db"] < 100
    assert model.step_cache is None


def test_the_examples_are_spread_over_the_table() -> None:
    first, second = examples(2)

    assert (first.prompt, first.seed, first.num_inference_steps) == (
        "Turn the triangle black",
        117647267,
        30,
    )
    assert first.images[0].size == (224, 288)
    assert second.prompt == "Erase the shape"
