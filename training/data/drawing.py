"""Scenes to pictures: every outline is a signed distance, so that edges are soft and any size can be drawn.

Everything is computed for many scenes at once, on the device that trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kontext.config import Resolution
from training.data.scenes import BORDER, COLOURS, KINDS, Background, Scene, Shape

SOFT_EDGE_PIXELS = 1.6  # over which an outline fades, as after a blur of one pixel
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, what Pillow's grey is made of

Outline = Callable[[Tensor, Tensor], Tensor]


def draw(scenes: Sequence[Scene], size: Resolution, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes.

    Args:
        size: width and height in pixels, for all of them.
    Returns:
        -1 to 1, shape (len(scenes), 3, height, width).
    """
    picture = _backgrounds(scenes, size, device)
    for slot in range(max(len(scene.shapes) for scene in scenes)):
        for rows, shapes in _by_kind(scenes, slot):
            picture[rows] = _with_shapes(picture[rows], shapes, size)
    bordered = [i for i, scene in enumerate(scenes) if scene.border]
    if bordered:
        picture[bordered] = _with_borders(picture[bordered], [str(scenes[i].border) for i in bordered], size)
    return _finished(picture, scenes) * 2 - 1


def label_map(scene: Scene, size: Resolution) -> Tensor:
    """What is seen at every pixel: -2 the border, -1 the background, i the scene's shape i; shape (height, width)."""
    labels = torch.full((size[1], size[0]), -1)
    for i, shape in enumerate(scene.shapes):
        labels[_coverage([shape], size, "cpu")[0, 0] > 0.5] = i
    if scene.border:
        labels[_depth(size, "cpu") < BORDER * min(size)] = -2
    return labels


def _by_kind(scenes: Sequence[Scene], slot: int) -> list[tuple[list[int], list[Shape]]]:
    """Rows and shapes of the scenes that have a shape in this slot, kind by kind."""
    present = [(i, scene.shapes[slot]) for i, scene in enumerate(scenes) if len(scene.shapes) > slot]
    groups = [[(i, shape) for i, shape in present if shape.kind == kind] for kind in KINDS]
    return [([i for i, _ in group], [shape for _, shape in group]) for group in groups if group]


def _with_shapes(picture: Tensor, shapes: Sequence[Shape], size: Resolution) -> Tensor:
    """One shape, of one kind, into every picture."""
    right, down = _from_centre(shapes, size, picture.device)
    paint = _toned(_rgb([shape.colour for shape in shapes], picture.device), 0.7 * (right + down))
    return torch.lerp(picture, paint, _coverage(shapes, size, picture.device))


def _coverage(shapes: Sequence[Shape], size: Resolution, device: torch.device | str) -> Tensor:
    """How much of every pixel a shape covers, 0 to 1, shape (batch, 1, height, width)."""
    right, down = _from_centre(shapes, size, device)
    cos = _column([math.cos(shape.angle) for shape in shapes], device)
    sin = _column([math.sin(shape.angle) for shape in shapes], device)
    distance = OUTLINES[shapes[0].kind](right * cos + down * sin, down * cos - right * sin)
    radius_pixels = _column([shape.radius * min(size) for shape in shapes], device)
    return (0.5 - distance * radius_pixels / SOFT_EDGE_PIXELS).clamp(0, 1)


def _from_centre(shapes: Sequence[Shape], size: Resolution, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(right, down) of every pixel from the shapes' centres, in radii."""
    x, y = _grid(size, device)
    radius = _column([shape.radius * min(size) for shape in shapes], device)
    right = (x - _column([shape.x * size[0] for shape in shapes], device)) / radius
    down = (y - _column([shape.y * size[1] for shape in shapes], device)) / radius
    return right.expand(-1, -1, size[1], -1), down.expand(-1, -1, -1, size[0])


def _backgrounds(scenes: Sequence[Scene], size: Resolution, device: torch.device | str) -> Tensor:
    picture = torch.empty(len(scenes), 3, size[1], size[0], device=device)
    for style in PATTERNS:
        rows = [i for i, scene in enumerate(scenes) if scene.background.style == style]
        if rows:
            grounds = [scenes[i].background for i in rows]
            picture[rows] = _toned(_rgb([ground.colour for ground in grounds], device), _tones(grounds, size, device))
    return picture


def _tones(grounds: Sequence[Background], size: Resolution, device: torch.device | str) -> Tensor:
    """-1 (light) to 1 (dark) at every pixel, for backgrounds of one style."""
    x, y = _grid(size, device)
    x, y = (x - size[0] / 2) / min(size), (y - size[1] / 2) / min(size)
    cos = _column([math.cos(ground.angle) for ground in grounds], device)
    sin = _column([math.sin(ground.angle) for ground in grounds], device)
    period = _column([ground.period for ground in grounds], device)
    strength = _column([ground.strength for ground in grounds], device)
    return strength * PATTERNS[grounds[0].style](x * cos + y * sin, y * cos - x * sin, period)


def _toned(colour: Tensor, tone: Tensor) -> Tensor:
    """A colour brought towards white (tone -1) or black (tone 1)."""
    tone = tone.clamp(-1, 1)
    return torch.where(tone < 0, colour - (1 - colour) * 0.16 * tone, colour * (1 - 0.22 * tone))


def _with_borders(picture: Tensor, colours: Sequence[str], size: Resolution) -> Tensor:
    inside = (_depth(size, picture.device) - BORDER * min(size)) / SOFT_EDGE_PIXELS + 0.5
    return torch.lerp(_rgb(colours, picture.device).expand_as(picture), picture, inside.clamp(0, 1))


def _depth(size: Resolution, device: torch.device | str) -> Tensor:
    """Pixels to the nearest edge, shape (height, width)."""
    x, y = _grid(size, device)
    return torch.minimum(torch.minimum(x, size[0] - x), torch.minimum(y, size[1] - y))


def _finished(picture: Tensor, scenes: Sequence[Scene]) -> Tensor:
    grey = [i for i, scene in enumerate(scenes) if scene.finish == "grey"]
    inverted = [i for i, scene in enumerate(scenes) if scene.finish == "inverted"]
    weights = picture.new_tensor(LUMINANCE)[:, None, None]
    picture[grey] = (picture[grey] * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    picture[inverted] = 1 - picture[inverted]
    return picture


def _grid(size: Resolution, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres of the pixels: x of shape (1, width), y of shape (height, 1)."""
    x, y = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in size)
    return x[None, :], y[:, None]


def _column(numbers: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None, None]


def _rgb(colours: Sequence[str], device: torch.device | str) -> Tensor:
    """0 to 1, shape (batch, 3, 1, 1)."""
    return torch.tensor([COLOURS[colour] for colour in colours], device=device)[:, :, None, None] / 255


# Outlines: signed distance to the outline in radii, negative inside; u to the right, v down.


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 1


def _square(u: Tensor, v: Tensor) -> Tensor:
    return _box(u, v, 0.8, 0.8)


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, its corners on the circle of radius 1."""
    return torch.maximum(v, math.sin(math.pi / 3) * u.abs() - v / 2) - 0.5


def _star(u: Tensor, v: Tensor) -> Tensor:
    """All ten half sides are folded onto one, which goes from the outer corner (1, 0) to the inner corner."""
    point, inner = math.pi / 5, 0.45
    corner_x, corner_y = inner * math.cos(point), inner * math.sin(point)
    radius = torch.hypot(u, v)
    angle = ((torch.atan2(u, -v) + point).remainder(2 * point) - point).abs()
    length = math.hypot(1 - corner_x, corner_y)
    along, across = radius * torch.cos(angle) - 1, radius * torch.sin(angle)
    return (along * corner_y + across * (1 - corner_x)) / length


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.78).abs() - 0.22


def _heart(u: Tensor, v: Tensor) -> Tensor:
    """A square on its corner, and circles of its half side about the middles of both upper sides."""
    half, lift = 0.55, 0.1
    v = v - lift
    square = (u.abs() + v.abs()) / math.sqrt(2) - half
    lobes = torch.hypot(u.abs() - half / math.sqrt(2), v + half / math.sqrt(2)) - half
    return torch.minimum(square, lobes)


def _diamond(u: Tensor, v: Tensor) -> Tensor:
    width = 0.68
    return (u.abs() / width + v.abs() - 1) / math.hypot(1 / width, 1)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    return torch.minimum(_box(u, v, 0.95, 0.32), _box(u, v, 0.32, 0.95))


OUTLINES: dict[str, Outline] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "diamond": _diamond,
    "cross": _cross,
}

# Patterns: tones of -1 to 1 from pixels in short sides along and across, and the pattern's period.


def _wave(x: Tensor, period: Tensor) -> Tensor:
    return (6 * torch.sin(2 * math.pi * x / period)).clamp(-1, 1)


PATTERNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda along, across, period: torch.zeros_like(along + across + period),
    "gradient": lambda along, across, period: 1.6 * along + 0 * (across + period),
    "stripes": lambda along, across, period: 0.5 * _wave(along, period) + 0 * across,
    "checks": lambda along, across, period: 0.5 * _wave(along, 2 * period) * _wave(across, 2 * period),
    "dots": lambda along, across, period: torch.where(
        torch.hypot(*((x.remainder(period) - period / 2) for x in (along, across))) < period / 5, 0.8, 0.0
    ),
}
