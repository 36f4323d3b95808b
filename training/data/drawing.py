"""Scenes to images: every outline is a signed distance, so that edges are soft and any size can be drawn.

Everything is computed for many scenes at once, on the device that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from kontext.config import Resolution
from training.data.scenes import BORDER, COLOURS, KINDS, Finish, Scene

SOFT_EDGE_PIXELS = 1.6  # over which an outline fades, as after a blur of one pixel
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's grey is made of
FINISHES: tuple[Finish, ...] = get_args(Finish)

Outline = Callable[[Tensor, Tensor], Tensor]
Pattern = Callable[[Tensor, Tensor, Tensor], Tensor]


class Sketch(NamedTuple):
    """Scenes as numbers: made on a CPU, drawn on any device."""

    scenes: Tensor  # float32, (scenes, 11): style, angle, period, strength, colour, border's colour or -1, finish
    shapes: Tensor  # float32, (shapes of all scenes, 9): scene, kind, x, y, radius, angle, colour


def sketch(scenes: Sequence[Scene]) -> Sketch:
    """Scenes as numbers."""
    described, shapes = [], []
    for i, scene in enumerate(scenes):
        ground = scene.background
        border = COLOURS[scene.border] if scene.border else (-255, -255, -255)
        finish = FINISHES.index(scene.finish)
        pattern = (STYLES.index(ground.style), ground.angle, ground.period, ground.strength)
        described.append((*pattern, *COLOURS[ground.colour], *border, finish))
        for shape in scene.shapes:
            place = (shape.x, shape.y, shape.radius, shape.angle)
            shapes.append((i, KINDS.index(shape.kind), *place, *COLOURS[shape.colour]))
    return Sketch(torch.tensor(described), torch.tensor(shapes).reshape(-1, 9).float())


def draw(scenes: Sequence[Scene], size: Resolution, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes.

    Args:
        size: width and height in pixels, for all of them.
    Returns:
        -1 to 1, shape (len(scenes), 3, height, width).
    """
    return paint(sketch(scenes), size, torch.device(device))


def paint(sketched: Sketch, size: Resolution, device: torch.device) -> Tensor:
    """Draw scenes that are numbers on the CPU; a GPU is given its work without waiting for it.

    Shapes of one kind are drawn together, whatever their scenes: no shape touches another, so their order is no matter.
    """

    def rows(numbers: Tensor, wanted: int) -> Tensor:
        return moved((numbers == wanted).nonzero().flatten())

    def moved(numbers: Tensor) -> Tensor:
        return numbers.to(device, non_blocking=True)

    scenes, shapes = moved(sketched.scenes), moved(sketched.shapes)
    image = torch.empty(len(scenes), 3, size[1], size[0], device=device)
    for style, pattern in enumerate(PATTERNS.values()):
        if len(chosen := rows(sketched.scenes[:, 0], style)):
            image.index_copy_(0, chosen, _background(scenes[chosen], pattern, size))
    covered, painted = image.new_zeros(len(scenes), 1, size[1], size[0]), torch.zeros_like(image)
    for kind, outline in enumerate(OUTLINES.values()):
        if len(chosen := rows(sketched.shapes[:, 1], kind)):
            coverage, colour = _figure(shapes[chosen], outline, size)
            owners = shapes[chosen, 0].long()
            covered.index_add_(0, owners, coverage)
            painted.index_add_(0, owners, coverage * colour)
    image = image * (1 - covered) + painted
    if len(chosen := moved((sketched.scenes[:, 7] >= 0).nonzero().flatten())):
        image.index_copy_(0, chosen, _with_border(image[chosen], _rgb(scenes[chosen, 7:10]), size))
    if len(chosen := rows(sketched.scenes[:, 10], FINISHES.index("grey"))):
        grey = sum(weight * image[chosen, channel] for channel, weight in enumerate(LUMINANCE))
        image.index_copy_(0, chosen, torch.as_tensor(grey)[:, None].expand(-1, 3, -1, -1))
    if len(chosen := rows(sketched.scenes[:, 10], FINISHES.index("inverted"))):
        image.index_copy_(0, chosen, 1 - image[chosen])
    return image * 2 - 1


def label_map(scene: Scene, size: Resolution) -> Tensor:
    """Label of every pixel: -2 the border, -1 the background, i the scene's shape i; shape (height, width)."""
    labels = torch.full((size[1], size[0]), -1)
    for i, shape in enumerate(scene.shapes):
        (numbers,) = sketch([replace(scene, shapes=(shape,))]).shapes
        labels[_figure(numbers[None], OUTLINES[shape.kind], size)[0][0, 0] > 0.5] = i
    if scene.border:
        labels[_depth(size, "cpu") < BORDER * min(size)] = -2
    return labels


def _figure(shapes: Tensor, outline: Outline, size: Resolution) -> tuple[Tensor, Tensor]:
    """(coverage of shapes of one kind, 0 to 1, shape (shapes, 1, height, width), their toned colours)."""
    x, y = _grid(size, shapes.device)
    radius = _column(shapes, 4) * min(size)
    right, down = (x - _column(shapes, 2) * size[0]) / radius, (y - _column(shapes, 3) * size[1]) / radius
    right, down = right.expand(-1, -1, size[1], -1), down.expand(-1, -1, -1, size[0])
    distance = outline(*_turned(right, down, _column(shapes, 5)))
    coverage = (0.5 - distance * radius / SOFT_EDGE_PIXELS).clamp(0, 1)
    return coverage, _toned(_rgb(shapes[:, 6:]), 0.7 * (right + down))


def _turned(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates along and across a direction, an angle for each image."""
    cos, sin = angle.cos(), angle.sin()
    return x * cos + y * sin, y * cos - x * sin


def _background(scenes: Tensor, pattern: Pattern, size: Resolution) -> Tensor:
    """Backgrounds of one style."""
    x, y = _grid(size, scenes.device)
    x, y = (x - size[0] / 2) / min(size), (y - size[1] / 2) / min(size)
    along, across = _turned(x, y, _column(scenes, 1))
    return _toned(_rgb(scenes[:, 4:7]), _column(scenes, 3) * pattern(along, across, _column(scenes, 2)))


def _toned(colour: Tensor, tone: Tensor) -> Tensor:
    """A colour brought towards white (tone -1) or black (tone 1)."""
    tone = tone.clamp(-1, 1)
    return torch.where(tone < 0, colour - (1 - colour) * 0.16 * tone, colour * (1 - 0.22 * tone))


def _with_border(image: Tensor, colour: Tensor, size: Resolution) -> Tensor:
    inside = (_depth(size, image.device) - BORDER * min(size)) / SOFT_EDGE_PIXELS + 0.5
    return torch.lerp(colour.expand_as(image), image, inside.clamp(0, 1))


def _depth(size: Resolution, device: torch.device | str) -> Tensor:
    """Pixels to the nearest edge, shape (height, width)."""
    x, y = _grid(size, device)
    return torch.minimum(torch.minimum(x, size[0] - x), torch.minimum(y, size[1] - y))


def _grid(size: Resolution, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres of the pixels: x of shape (1, width), y of shape (height, 1)."""
    x, y = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in size)
    return x[None, :], y[:, None]


def _column(numbers: Tensor, field: int) -> Tensor:
    return numbers[:, field, None, None, None]


def _rgb(colours: Tensor) -> Tensor:
    """Colours of 0 to 255, shape (batch, 3), as 0 to 1, shape (batch, 3, 1, 1)."""
    return colours[:, :, None, None] / 255


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _star(u: Tensor, v: Tensor) -> Tensor:
    """All ten half sides are folded onto one, which goes from the outer corner (1, 0) to the inner corner."""
    point, inner = math.pi / 5, 0.45
    corner_x, corner_y = inner * math.cos(point), inner * math.sin(point)
    radius = torch.hypot(u, v)
    angle = ((torch.atan2(u, -v) + point).remainder(2 * point) - point).abs()
    length = math.hypot(1 - corner_x, corner_y)
    along, across = radius * torch.cos(angle) - 1, radius * torch.sin(angle)
    return (along * corner_y + across * (1 - corner_x)) / length


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its corner, and circles of its half side about the middles of both upper sides."""
    half, lift = 0.55, 0.1
    v = v - lift
    square = (u.abs() + v.abs()) / math.sqrt(2) - half
    lobes = torch.hypot(u.abs() - half / math.sqrt(2), v + half / math.sqrt(2)) - half
    return torch.minimum(square, lobes)


def _wave(x: Tensor, period: Tensor) -> Tensor:
    return (6 * torch.sin(2 * math.pi * x / period)).clamp(-1, 1)


# Signed distances to the outline in radii, negative inside; u to the right, v down.
OUTLINES: dict[str, Outline] = {
    "circle": lambda u, v: torch.hypot(u, v) - 1,
    "square": lambda u, v: _box(u, v, 0.8, 0.8),
    # Equilateral, its corners on the circle of radius 1.
    "triangle": lambda u, v: torch.maximum(v, math.sin(math.pi / 3) * u.abs() - v / 2) - 0.5,
    "star": _star,
    "ring": lambda u, v: (torch.hypot(u, v) - 0.78).abs() - 0.22,
    "heart": _heart,
    "diamond": lambda u, v: (u.abs() / 0.68 + v.abs() - 1) / math.hypot(1 / 0.68, 1),
    "cross": lambda u, v: torch.minimum(_box(u, v, 0.95, 0.32), _box(u, v, 0.32, 0.95)),
}

# Tones of -1 to 1 from distances along and across, in short sides, and the pattern's period.
PATTERNS: dict[str, Pattern] = {
    "plain": lambda along, across, period: torch.zeros_like(along + across + period),
    "gradient": lambda along, across, period: 1.6 * along + 0 * (across + period),
    "stripes": lambda along, across, period: 0.5 * _wave(along, period) + 0 * across,
    "checks": lambda along, across, period: 0.5 * _wave(along, 2 * period) * _wave(across, 2 * period),
    "dots": lambda along, across, period: torch.where(
        torch.hypot(*((x.remainder(period) - period / 2) for x in (along, across))) < period / 5, 0.8, 0.0
    ),
}
STYLES = tuple(PATTERNS)
