"""The judge passes what was asked for, and nothing else."""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import pytest

from training.data.drawing import draw
from training.data.edits import EDITS
from training.data.scenes import COLOURS, random_scene
from training.judging.cases import Case, cases, to_image
from training.judging.judge import CLEAN, faults, nearest_colour, pixels, psnr, worst_area

SIZES = ((256, 256), (224, 288))


@cache
def some_cases(kind: str) -> list[Case]:
    return cases(kind, 6, SIZES)


@pytest.mark.parametrize("kind", EDITS)
def test_the_wanted_image_passes(kind: str) -> None:
    for case in some_cases(kind):
        assert list(faults(case.wanted, pixels(case.target))) == []
        assert worst_area(pixels(case.target), case.wanted.target) == 0


@pytest.mark.parametrize("kind", EDITS)
def test_the_input_does_not_pass(kind: str) -> None:
    for case in some_cases(kind):
        assert list(faults(case.wanted, pixels(case.images[0]))) != []


@pytest.mark.parametrize("kind", EDITS)
def test_an_image_of_something_else_does_not_pass(kind: str) -> None:
    for case in some_cases(kind):
        (other,) = draw([random_scene(Random(1), fewest=4)], case.target.size)

        assert list(faults(case.wanted, pixels(to_image(other)))) != []


@pytest.mark.parametrize("kind", ["recolour", "remove", "replace", "resize"])
def test_the_right_edit_with_the_rest_changed_too_does_not_pass(kind: str) -> None:
    for case in some_cases(kind):
        image = pixels(case.target).copy()
        image[:40] = 255 - image[:40]

        assert any("of the rest" in fault for fault in faults(case.wanted, image))


def test_a_small_error_everywhere_passes() -> None:
    (case, *_) = some_cases("recolour")
    noise = np.random.default_rng(0).normal(0, 8, pixels(case.target).shape)

    assert list(faults(case.wanted, pixels(case.target) + noise)) == []


def test_cases_are_the_same_at_every_call() -> None:
    first, again = (cases("move", 6, SIZES) for _ in range(2))

    assert [case.prompt for case in first] == [case.prompt for case in again]


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_nearest_to_itself_a_little_darker(colour: str) -> None:
    assert nearest_colour(np.full((4, 4, 3), COLOURS[colour]) * 0.93) == colour


def test_an_outline_off_by_a_pixel_is_clean_and_a_spot_is_not() -> None:
    red = np.full((32, 40, 3), COLOURS["red"], float)
    red[:, 17:] = COLOURS["white"]
    shifted, spotted = np.roll(red, 1, axis=1), red.copy()
    shifted[:, 0] = red[:, 0]
    spotted[8:16, 24:32, 2] -= CLEAN + 1

    # One column of eight is wrong, by the difference between red and white in their worst channel.
    assert worst_area(shifted, red) == np.ptp([COLOURS["red"], COLOURS["white"]], axis=0).max() / 8 < CLEAN
    assert worst_area(spotted, red) == CLEAN + 1


def test_a_rest_that_fills_no_area_is_left_out() -> None:
    image = np.zeros((20, 19, 3))
    image[16:, 16:] = 255

    assert worst_area(image, np.zeros_like(image)) == 0


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((4, 4, 3))

    assert psnr(black + 25.5, black) == pytest.approx(20.0)  # 20 log10(255 / 25.5)
