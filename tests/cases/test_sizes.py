"""Sizes that people ask for: those of `sizes/README.md`, and others of the same kinds."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

import kontext
from kontext import Edited, EditRequest

SIZES = Path(__file__).parent / "sizes"
ROWS = list(csv.DictReader((SIZES / "sizes.csv").read_text().splitlines()))
PROMPTS = {row["image"]: row["prompt"] for row in ROWS}
GREY, INVERT = PROMPTS
STEPS = 8


@cache
def model() -> kontext.Kontext:
    return kontext.load(device="cpu")


def edit(image: Image.Image, prompt: str, steps: int = STEPS, **asked: Any) -> Edited:
    return model().run(EditRequest((image,), prompt, num_inference_steps=steps, seed=7, **asked))


def picture(name: str) -> Image.Image:
    return Image.open(SIZES / name).convert("RGB")


def mean_error(edited: Image.Image, expected: Image.Image) -> float:
    wanted = expected.resize(edited.size, Image.Resampling.LANCZOS)
    return float(np.abs(np.asarray(edited, float) - np.asarray(wanted, float)).mean())


@pytest.mark.parametrize(
    ("name", "asked", "size"),
    [
        *((row["image"], {side: int(row[side]) for side in ("width", "height")}, None) for row in ROWS),
        (INVERT, {"width": 100}, (100, 100)),  # no multiple of 16, and less than the model samples
        (GREY, {"height": 200}, (200, 200)),
        (GREY, {"aspect_ratio": "input"}, (256, 256)),
        (INVERT, {"width": 384, "height": 384, "size_mode": "fit"}, (384, 384)),
        (GREY, {"width": 60, "height": 60, "size_mode": "fit"}, (60, 60)),
    ],
    ids=str,
)
def test_the_whole_picture_is_edited_at_the_asked_size(
    name: str, asked: dict[str, Any], size: tuple[int, int] | None
) -> None:
    edited = edit(picture(name), PROMPTS[name], **asked)

    assert edited.image.size == (size or (asked["width"], asked["height"]))
    assert mean_error(edited.image, picture(f"expected_{name}")) < 8


def test_the_official_codes_behaviour_is_a_corner_of_the_picture() -> None:
    """The trouble itself, which `reference` keeps: the measure above tells the two apart."""
    edited = edit(picture(GREY), PROMPTS[GREY], width=128, height=128, size_mode="reference")

    assert mean_error(edited.image, picture(f"expected_{GREY}")) > 10


@pytest.mark.parametrize(
    ("size", "asked", "wanted"),
    [
        ((1920, 1080), {"width": 1920}, (1920, 1080)),
        ((1920, 1080), {"height": 1080}, (1920, 1080)),
        ((1920, 1080), {"aspect_ratio": "input"}, (1920, 1080)),
        ((640, 480), {"aspect_ratio": "input"}, (640, 480)),
        ((1920, 1080), {"aspect_ratio": "16:9"}, (336, 192)),  # 341 x 192 has 256 * 256 pixels
    ],
    ids=str,
)
def test_the_shape_is_kept(size: tuple[int, int], asked: dict[str, Any], wanted: tuple[int, int]) -> None:
    assert edit(Image.new("RGB", size, "teal"), "x", steps=1, **asked).image.size == wanted


@pytest.mark.parametrize("size", [(3000, 200), (200, 3000), (2000, 500)])
def test_a_picture_too_long_for_the_model_keeps_its_shape_with_a_warning(size: tuple[int, int]) -> None:
    edited = edit(Image.new("RGB", size, "teal"), "x", steps=1)

    width, height = edited.image.size
    assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
    assert "beyond 3:1" in edited.warnings[0]


def test_a_long_picture_is_edited_as_a_whole() -> None:
    strip = Image.new("RGB", (1024, 256), "orange")
    for place, name in enumerate((GREY, INVERT, GREY)):
        strip.paste(picture(name), (128 + 256 * place, 0))

    edited = edit(strip, PROMPTS[INVERT])

    assert mean_error(edited.image, ImageOps.invert(strip)) < 20
    assert mean_error(edited.image, strip) > 80
