"""Scenes are sound, and the images show what the scenes say."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch

from training.data.drawing import draw, label_map
from training.data.scenes import BORDER, COLOURS, KINDS, PLACES, Background, Scene, Shape, random_scene

SIZE = (96, 96)
WHITE = Scene(Background("white"))

# Area of a figure of radius 1, in parts of the circle around it.
AREAS = {
    "circle": 1.0,
    "square": 1.6**2 / 3.1416,
    "triangle": 3 * 3**0.5 / 4 / 3.1416,
    "star": 10 * 0.5 * 0.45 * 0.5878 / 3.1416,  # ten triangles with sides 1 and 0.45 about an angle of 36 degrees
    "ring": 1 - 0.56**2,
    "heart": (1.1**2 + 3.1416 * 0.55**2) / 3.1416,  # a square and two half circles
    "diamond": 2 * 0.68 / 3.1416,
    "cross": (2 * 1.9 * 0.64 - 0.64**2) / 3.1416,
}


def rgb(image: torch.Tensor, x: float, y: float) -> tuple[int, ...]:
    """The colour at a place given in parts of the image."""
    _, height, width = image.shape
    return tuple(((image[:, int(y * height), int(x * width)] + 1) * 127.5).round().int().tolist())


@pytest.mark.parametrize("seed", range(20))
def test_a_random_scene_has_no_shape_that_touches_another_or_the_edge(seed: int) -> None:
    scene = random_scene(Random(seed), aspect=(1.0, 224 / 288, 288 / 224)[seed % 3])

    assert 1 <= len(scene.shapes) <= 5
    assert scene.is_sound()


def test_a_seed_gives_the_same_scene() -> None:
    assert random_scene(Random(7)) == random_scene(Random(7)) != random_scene(Random(8))


def test_half_of_the_scenes_have_shapes_that_are_told_apart_by_two_words_only() -> None:
    rng = Random(0)
    scenes = [random_scene(rng, fewest=3) for _ in range(200)]

    alike = sum(len({shape.kind for shape in scene.shapes}) < len(scene.shapes) for scene in scenes)

    assert alike > 80


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("angle", [0.0, 0.25])
def test_a_shape_covers_its_area(kind: str, angle: float) -> None:
    shape = Shape(kind, "blue", 0.5, 0.5, radius=0.4, angle=angle)

    covered = (label_map(replace(WHITE, shapes=(shape,)), SIZE) == 0).float().mean().item()

    # Distances to a corner are shorter than what is computed, so outlines may be off by part of a pixel.
    assert covered == pytest.approx(AREAS[kind] * 3.1416 * 0.4**2, rel=0.04)


@pytest.mark.parametrize("place", PLACES)
def test_a_shape_is_where_the_scene_says(place: str) -> None:
    x, y = PLACES[place]

    (image,) = draw([replace(WHITE, shapes=(Shape("circle", "green", x, y, 0.1),))], SIZE)

    assert rgb(image, x, y) == pytest.approx(COLOURS["green"], abs=3)
    assert rgb(image, (x + 0.4) % 1, y) == COLOURS["white"]


def test_later_images_of_a_batch_are_drawn_as_if_alone() -> None:
    scenes = [random_scene(Random(seed)) for seed in range(6)]

    together = draw(scenes, SIZE)

    for scene, image in zip(scenes, together, strict=True):
        assert torch.allclose(draw([scene], SIZE)[0], image, atol=1e-5)


def test_a_scene_looks_the_same_at_twice_the_pixels() -> None:
    scenes = [random_scene(Random(seed)) for seed in range(6)]

    small, large = draw(scenes, (128, 128)), draw(scenes, (256, 256))

    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.01


def test_every_background_is_of_its_colour_on_the_whole() -> None:
    for style in ("plain", "gradient", "stripes", "dots", "checks"):
        (image,) = draw([Scene(Background("orange", style, angle=0.3, strength=1.0))], SIZE)

        middle = ((image.mean(dim=(1, 2)) + 1) * 127.5).tolist()
        assert middle == pytest.approx(COLOURS["orange"], abs=25)
        assert (image.std() > 0) or style == "plain"


def test_a_border_lies_over_everything_at_the_edge() -> None:
    shape = Shape("square", "red", 0.2, 0.5, 0.19)
    scene = replace(WHITE, shapes=(shape,), border="black")

    (image,) = draw([scene], SIZE)

    assert rgb(image, 0.02, 0.5) == COLOURS["black"]
    assert rgb(image, 0.5, 0.5) == COLOURS["white"]
    assert (label_map(scene, SIZE) == -2).float().mean().item() == pytest.approx(1 - (1 - 2 * BORDER) ** 2, abs=0.01)


def test_grey_and_inverted_images_are_made_from_the_drawn_one() -> None:
    scene = random_scene(Random(3))

    drawn, grey, inverted = draw([scene, replace(scene, finish="grey"), replace(scene, finish="inverted")], SIZE)

    assert torch.allclose(grey[0], grey[2])
    assert torch.allclose(grey[0], 0.299 * drawn[0] + 0.587 * drawn[1] + 0.114 * drawn[2], atol=1e-5)
    assert torch.allclose(inverted, -drawn, atol=1e-5)
