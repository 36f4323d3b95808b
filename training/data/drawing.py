"""Scenes to images: every outline is a signed distance, so that edges are soft and any size can be drawn.

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


def draw(scenes: Sequence[Scene], size: Resolution, device: torch.device | str = "cpu") -> Tensor:
    """Draw scenes.

    Args:
        size: width and height in pixels, for all of them.
    Returns:
        -1 to 1, shape (len(scenes), 3, height, width).
    """
    image = _backgrounds(scenes, size, device)
    for slot in range(max(len(scene.shapes) for scene in scenes)):
        for rows, shapes in _by_kind(scenes, slot):
            image[rows] = _with_shapes(image[rows], shapes, size)
    bordered = [i for i, scene in enumerate(scenes) if scene.border]
    if bordered:
        image[bordered] = _with_borders(image[bordered], [str(scenes[i].border) for i in bordered], size)
    return _finished(image, scenes) * 2 - 1


def label_map(scene: Scene, size: Resolution) -> Tensor:
    """Label of every pixel: -2 the border, -1 the background, i the scene's shape i; shape (height, width)."""
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


def _with_shapes(image: Tensor, shapes: Sequence[Shape], size: Resolution) -> Tensor:
    """One shape, of one kind, into every image."""
    right, down = _from_centre(shapes, size, image.device)
    paint = _toned(_rgb([shape.colour for shape in shapes], image.device), 0.7 * (right + down))
    return torch.lerp(image, paint, _coverage(shapes, size, image.device))


def _coverage(shapes: Sequence[Shape], size: Resolution, device: torch.device | str) -> Tensor:
    """Part of every pixel that a shape covers, 0 to 1, shape (batch, 1, height, width)."""
    right, down = _from_centre(shapes, size, device)
    distance = OUTLINES[shapes[0].kind](*_turned(right, down, [shape.angle for shape in shapes]))
    radius_pixels = _column([shape.radius * min(size) for shape in shapes], device)
    return (0.5 - distance * radius_pixels / SOFT_EDGE_PIXELS).clamp(0, 1)


def _from_centre(shapes: Sequence[Shape], size: Resolution, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(right, down) of every pixel from the shapes' centres, in radii."""
    x, y = _grid(size, device)
    radius = _column([shape.radius * min(size) for shape in shapes], device)
    right = (x - _column([shape.x * size[0] for shape in shapes], device)) / radius
    down = (y - _column([shape.y * size[1] for shape in shapes], device)) / radius
    return right.expand(-1, -1, size[1], -1), down.expand(-1, -1, -1, size[0])


def _turned(x: Tensor, y: Tensor, angles: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Coordinates along and across a direction, an angle for each image."""
    cos, sin = (_column([turn(angle) for angle in angles], x.device) for turn in (math.cos, math.sin))
    return x * cos + y * sin, y * cos - x * sin


def _backgrounds(scenes: Sequence[Scene], size: Resolution, device: torch.device | str) -> Tensor:
    image = torch.empty(len(scenes), 3, size[1], size[0], device=device)
    for style in PATTERNS:
        rows = [i for i, scene in enumerate(scenes) if scene.background.style == style]
        if rows:
            grounds = [scenes[i].background for i in rows]
            image[rows] = _toned(_rgb([ground.colour for ground in grounds], device), _tones(grounds, size, device))
    return image


def _tones(grounds: Sequence[Background], size: Resolution, device: torch.device | str) -> Tensor:
    """-1 (light) to 1 (dark) at every pixel, for backgrounds of one style."""
    x, y = _grid(size, device)
    x, y = (x - size[0] / 2) / min(size), (y - size[1] / 2) / min(size)
    along, across = _turned(x, y, [ground.angle for ground in grounds])
    period = _column([ground.period for ground in grounds], device)
    strength = _column([ground.strength for ground in grounds], device)
    return strength * PATTERNS[grounds[0].style](along, across, period)


def _toned(colour: Tensor, tone: Tensor) -> Tensor:
    """A colour brought towards white (tone -1) or black (tone 1)."""
    tone = tone.clamp(-1, 1)
    return torch.where(tone < 0, colour - (1 - colour) * 0.16 * tone, colour * (1 - 0.22 * tone))


def _with_borders(image: Tensor, colours: Sequence[str], size: Resolution) -> Tensor:
    inside = (_depth(size, image.device) - BORDER * min(size)) / SOFT_EDGE_PIXELS + 0.5
    return torch.lerp(_rgb(colours, image.device).expand_as(image), image, inside.clamp(0, 1))


def _depth(size: Resolution, device: torch.device | str) -> Tensor:
    """Pixels to the nearest edge, shape (height, width)."""
    x, y = _grid(size, device)
    return torch.minimum(torch.minimum(x, size[0] - x), torch.minimum(y, size[1] - y))


def _finished(image: Tensor, scenes: Sequence[Scene]) -> Tensor:
    grey = [i for i, scene in enumerate(scenes) if scene.finish == "grey"]
    inverted = [i for i, scene in enumerate(scenes) if scene.finish == "inverted"]
    weights = image.new_tensor(LUMINANCE)[:, None, None]
    image[grey] = (image[grey] * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    image[inverted] = 1 - image[inverted]
    return image


def _grid(size: Resolution, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres of the pixels: x of shape (1, width), y of shape (height, 1)."""
    x, y = (torch.arange(side, dtype=torch.float32, device=device) + 0.5 for side in size)
    return x[None, :], y[:, None]


def _column(numbers: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None, None]


def _rgb(colours: Sequence[str], device: torch.device | str) -> Tensor:
    """0 to 1, shape (batch, 3, 1, 1)."""
    return torch.tensor([COLOURS[colour] for colour in colours], device=device)[:, :, None, None] / 255


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
OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
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
PATTERNS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": lambda along, across, period: torch.zeros_like(along + across + period),
    "gradient": lambda along, across, period: 1.6 * along + 0 * (across + period),
    "stripes": lambda along, across, period: 0.5 * _wave(along, period) + 0 * across,
    "checks": lambda along, across, period: 0.5 * _wave(along, 2 * period) * _wave(across, 2 * period),
    "dots": lambda along, across, period: torch.where(
        torch.hypot(*((x.remainder(period) - period / 2) for x in (along, across))) < period / 5, 0.8, 0.0
    ),
}
