"""The bundled model does what the instruction says: the named thing changes as asked, the rest stays."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import kontext

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ROWS = {row["image"]: row for row in csv.DictReader((EXAMPLES / "data.csv").read_text().splitlines())}

# The colours that the model knows, as it draws them.
COLOURS = {
    "red": (224, 45, 50),
    "orange": (247, 144, 30),
    "yellow": (250, 220, 60),
    "green": (46, 160, 75),
    "cyan": (52, 196, 216),
    "blue": (36, 84, 214),
    "purple": (131, 56, 178),
    "pink": (247, 132, 182),
    "white": (246, 246, 246),
    "black": (28, 28, 32),
}

Pixels = np.ndarray  # (height, width, 3), float
Judge = Callable[["Example", Pixels], Iterator[str]]


@dataclass(frozen=True)
class Example:
    """An input, what the edit should make of it, and which pixels that changes."""

    source: Pixels
    expected: Pixels

    @property
    def changed(self) -> np.ndarray:
        """Where the edit belongs, without the outline, which may wobble by a pixel or two."""
        return shrunk(np.abs(self.source - self.expected).max(-1) > 24)

    @property
    def kept(self) -> np.ndarray:
        return shrunk(np.abs(self.source - self.expected).max(-1) <= 8)


def becomes(colour: str) -> Judge:
    """What changes has the colour asked for, among all that the model knows, and nothing else changes."""

    def judge(example: Example, picture: Pixels) -> Iterator[str]:
        seen = nearest_colour(picture[example.changed])
        if seen != colour:
            yield f"what was to become {colour} is {seen}"
        yield from rest_changed(example, picture)

    return judge


def vanishes(example: Example, picture: Pixels) -> Iterator[str]:
    error = mean_error(picture, example.expected, example.changed)
    if error > 20:
        yield f"what was to vanish differs by {error:.0f} from what is behind it"
    yield from rest_changed(example, picture)


def turns_grey(example: Example, picture: Pixels) -> Iterator[str]:
    colourfulness = np.ptp(picture, axis=-1).mean()
    if colourfulness > 14:
        yield f"channels differ by {colourfulness:.0f} on average"
    yield from looks_like_expected(example, picture, 16)


def inverts(example: Example, picture: Pixels) -> Iterator[str]:
    yield from looks_like_expected(example, picture, 20)


def looks_like_expected(example: Example, picture: Pixels, tolerance: float) -> Iterator[str]:
    error = np.abs(picture - example.expected).mean()
    if error > tolerance:
        yield f"the picture differs by {error:.0f} from the expected one"


def rest_changed(example: Example, picture: Pixels) -> Iterator[str]:
    error = mean_error(picture, example.source, example.kept)
    if error > 14:
        yield f"the rest differs by {error:.0f} from the input"
    wrong = (np.abs(picture - example.source).max(-1) > 60)[example.kept].mean()
    if wrong > 0.025:
        yield f"{wrong:.1%} of the rest is another colour"


JUDGES: dict[str, Judge] = {
    "01_recolor.png": becomes("black"),
    "02_recolor.png": becomes("red"),
    "03_recolor.png": becomes("green"),
    "04_background.png": becomes("black"),
    "05_background.png": becomes("orange"),
    "06_remove.png": vanishes,
    "07_bw.png": turns_grey,
    "08_invert.png": inverts,
    "09_border.png": becomes("cyan"),
    "10_border.png": becomes("cyan"),
    "11_background.png": becomes("purple"),
    "12_bw.png": turns_grey,
}


@pytest.mark.parametrize("name", JUDGES)
def test_the_edit_does_what_the_prompt_says_and_keeps_the_rest(name: str) -> None:
    row = ROWS[name]

    picture = bundled_model().edit(
        Image.open(EXAMPLES / name),
        row["prompt"],
        num_inference_steps=20,
        seed=int(row["seed"]),
        width=int(row["width"]),
        height=int(row["height"]),
    )

    assert list(JUDGES[name](example(name), pixels(picture))) == []


@pytest.mark.parametrize("name", JUDGES)
def test_the_judge_accepts_the_expected_picture(name: str) -> None:
    assert list(JUDGES[name](example(name), example(name).expected)) == []


@pytest.mark.parametrize("name", JUDGES)
def test_the_judge_refuses_a_picture_without_the_edit(name: str) -> None:
    assert list(JUDGES[name](example(name), example(name).source)) != []


@pytest.mark.parametrize("name", JUDGES)
def test_the_judge_refuses_an_edit_of_everything(name: str) -> None:
    flooded = np.zeros_like(example(name).source) + COLOURS["pink"]

    assert list(JUDGES[name](example(name), flooded)) != []


def test_every_example_is_judged() -> None:
    assert JUDGES.keys() == ROWS.keys()


@cache
def bundled_model() -> kontext.Kontext:
    return kontext.load(device="cpu")


@cache
def example(name: str) -> Example:
    return Example(pixels(Image.open(EXAMPLES / name)), pixels(Image.open(EXAMPLES / "expected" / name)))


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB")).astype(float)


def shrunk(mask: np.ndarray) -> np.ndarray:
    """The mask without the two pixels along its edge."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.MinFilter(5))) > 0


def mean_error(picture: Pixels, wanted: Pixels, mask: np.ndarray) -> float:
    return float(np.abs(picture - wanted)[mask].mean())


def nearest_colour(area: Pixels) -> str:
    """The known colour that is nearest to the middle colour of an area, as the eye sees distances."""
    seen = cielab(np.median(area, axis=0))
    return min(COLOURS, key=lambda name: float(np.linalg.norm(cielab(np.array(COLOURS[name], float)) - seen)))


def cielab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of an sRGB colour of 0 to 255, white point D65."""
    linear = np.where(rgb > 0.04045 * 255, ((rgb / 255 + 0.055) / 1.055) ** 2.4, rgb / 255 / 12.92)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    ratio = xyz / (0.9505, 1.0, 1.089)
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
