"""Scenes as values: shapes on a background, perhaps a border, perhaps without colours.

Places are fractions of width and height, counted from the top left; sizes are fractions of the shorter side, so that a
scene can be drawn at any number of pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

KINDS = ("circle", "square", "triangle", "star", "ring", "heart", "diamond", "cross")

# sRGB, 0 to 255.
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

# (x, y) of places that sentences name.
PLACES = {
    "top left": (0.22, 0.22),
    "top": (0.5, 0.22),
    "top right": (0.78, 0.22),
    "left": (0.22, 0.5),
    "center": (0.5, 0.5),
    "right": (0.78, 0.5),
    "bottom left": (0.22, 0.78),
    "bottom": (0.5, 0.78),
    "bottom right": (0.78, 0.78),
}

BORDER = 0.0625  # thickness
MOST_SHAPES = 5
SMALLEST, LARGEST = 0.08, 0.3  # radius
GAP = 0.02  # between shapes, and between a shape and the edge

BackgroundStyle = Literal["plain", "gradient", "stripes", "dots", "checks"]
Finish = Literal["as drawn", "grey", "inverted"]


@dataclass(frozen=True)
class Shape:
    """One figure; all kinds fit into a circle of its radius."""

    kind: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float = 0.0  # radians, clockwise


@dataclass(frozen=True)
class Background:
    """One colour in two tones."""

    colour: str
    style: BackgroundStyle = "plain"
    angle: float = 0.0  # radians: where the pattern runs
    period: float = 0.25  # of the pattern
    strength: float = 0.6  # how far the tones lie apart, 0 to 1


@dataclass(frozen=True)
class Scene:
    """A whole drawing."""

    background: Background
    shapes: tuple[Shape, ...] = ()
    border: str | None = None  # its colour
    finish: Finish = "as drawn"
    aspect: float = 1.0  # width / height

    def replacing(self, shape: Shape, *others: Shape) -> Scene:
        """The scene with `others` where `shape` was; nothing for a shape that vanishes."""
        shapes = [new for old in self.shapes for new in (others if old == shape else (old,))]
        return replace(self, shapes=tuple(shapes))

    def adding(self, shape: Shape) -> Scene:
        return replace(self, shapes=(*self.shapes, shape))

    def is_sound(self) -> bool:
        """True if no shape touches another or the edge, and each stands out from the background."""
        return all(
            self.has_room_for(shape, self.shapes[:i]) and shape.colour != self.background.colour
            for i, shape in enumerate(self.shapes)
        )

    def has_room_for(self, shape: Shape, others: Iterable[Shape]) -> bool:
        x, y, width, height = self._in_short_sides(shape)
        reach = shape.radius + GAP
        if not (reach <= x <= width - reach and reach <= y <= height - reach):
            return False
        distances = (math.dist((x, y), self._in_short_sides(other)[:2]) - other.radius for other in others)
        return all(distance >= reach for distance in distances)

    def _in_short_sides(self, shape: Shape) -> tuple[float, float, float, float]:
        """(x, y, width, height) where the shorter side is 1."""
        width, height = max(self.aspect, 1.0), max(1 / self.aspect, 1.0)
        return shape.x * width, shape.y * height, width, height


def random_scene(
    rng: Random, aspect: float = 1.0, fewest: int = 1, most: int = MOST_SHAPES, alike_share: float = 0.5
) -> Scene:
    """A scene of `fewest` to `most` shapes; in a share of the scenes shapes share a kind or a colour."""
    while True:
        scene = Scene(random_background(rng), aspect=aspect)
        wanted, alike = rng.randint(fewest, most), rng.random() < alike_share
        for _ in range(40):
            if len(scene.shapes) == wanted:
                return scene
            shape = random_shape(rng, scene, alike, crowd=wanted)
            if shape.colour != scene.background.colour and scene.has_room_for(shape, scene.shapes):
                scene = scene.adding(shape)


def random_background(rng: Random) -> Background:
    style: BackgroundStyle = rng.choices(("plain", "gradient", "stripes", "dots", "checks"), (40, 25, 15, 10, 10))[0]
    return Background(
        colour=rng.choice(list(COLOURS)),
        style=style,
        angle=rng.uniform(0, 2 * math.pi),
        period=rng.uniform(0.15, 0.35),
        strength=rng.uniform(0.3, 1.0),
    )


def random_shape(rng: Random, scene: Scene, alike: bool = False, crowd: int = 1) -> Shape:
    """A shape somewhere; with `alike` it often takes kind or colour, never both, from one that is there."""
    kind, colour = rng.choice(KINDS), rng.choice(list(COLOURS))
    if alike and scene.shapes:
        model = rng.choice(scene.shapes)
        kind, colour = rng.choice(((model.kind, colour), (kind, model.colour)))
    if any((kind, colour) == (other.kind, other.colour) for other in scene.shapes):
        kind = rng.choice([other for other in KINDS if other != kind])
    largest = max(LARGEST - 0.04 * crowd, 0.14)
    return Shape(
        kind, colour, rng.random(), rng.random(), rng.uniform(SMALLEST + 0.02, largest), rng.uniform(-0.25, 0.25)
    )
