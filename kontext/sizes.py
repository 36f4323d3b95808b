"""Sizes of an edit: what was asked for, what is sampled, what the inputs are brought to. Needs no torch.

Positions of target and references are rows and columns of tokens. An object keeps its place only if both have the same
grid; docs/numerics.md has the measurements behind the rules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from kontext.config import PIXELS_PER_TOKEN, ModelConfig, Resolution
from kontext.errors import RequestError
from kontext.images.tensors import crop_to_size
from kontext.request import LARGEST_SIDE, EditRequest

SAME_SHAPE = 1.05
"""Shapes (width / height) that differ by less are taken for the same: it is what rounding to whole tokens does."""

WIDEST_SHAPE = 3.0
"""Longer side by shorter side up to which a grid is sampled; longer pictures are padded to it."""

NOTICED_CHANGE = 1.10
"""Change of a picture's shape that gets a warning when no size was asked for."""

SMALLEST_PART = 4
"""A grid of less than the usual area by this number is not sampled: edits of tiny grids get worse quickly."""


@dataclass(frozen=True)
class Placement:
    """Preparation of an input: resized to `content`, which lies in the middle of `size`, edges repeated outwards."""

    size: Resolution
    content: Resolution

    def prepare(self, image: Image.Image) -> Image.Image:
        """The image to be resized to `size`; the given one unless it is padded."""
        if self.content == self.size:
            return image
        pixels = np.asarray(image.resize(self.content, Image.Resampling.LANCZOS))
        spare = [whole - part for whole, part in zip(self.size, self.content, strict=True)]
        (left, right), (top, bottom) = ((space // 2, space - space // 2) for space in spare)
        return Image.fromarray(np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge"))


@dataclass(frozen=True)
class SizePlan:
    """Sizes of one edit, in pixels.

    Args:
        sampled: of the target.
        references: of the inputs, one each.
        shown: part in the middle of the target that is the picture.
        output: of the finished image, to which the shown part is resampled.
    """

    sampled: Resolution
    references: tuple[Placement, ...]
    shown: Resolution
    output: Resolution
    warnings: tuple[str, ...] = ()

    def finish(self, image: Image.Image, *, is_exact: bool) -> Image.Image:
        """Bring a decoded target to the output's size.

        Args:
            is_exact: otherwise the output's sides are rounded up to whole tokens, as in the reference.
        """
        if is_exact or self.shown != self.sampled:
            image = crop_to_size(image, self.shown)
        wanted = self.output if is_exact else _whole_tokens(self.output)
        return image if image.size == wanted else image.resize(wanted, Image.Resampling.LANCZOS)


def plan_sizes(request: EditRequest, config: ModelConfig) -> SizePlan:
    """Sizes at which a model does what a request asks for.

    Raises:
        RequestError: the side that follows from the first image's shape is too long.
    """
    if request.size_mode == "reference":
        return _as_the_reference(request, config)
    asked, picture = asked_size(request, config.usual_area), request.images[0].size
    if asked is not None and request.size_mode == "match":
        sampled, warnings = _within_reach(asked, config)
    else:
        sampled, warnings = _preferred(asked or picture, config), ()
    shown = _part(asked or picture, sampled)
    plan = SizePlan(
        sampled,
        tuple(_placement(image.size, asked, sampled, request, config) for image in request.images),
        shown=shown,
        output=asked or shown,
    )
    return replace(plan, warnings=(*warnings, *_changes(picture, asked, plan)))


def asked_size(request: EditRequest, usual_area: int) -> Resolution | None:
    """Size of the output that a request asks for; None when it leaves it to the model.

    Args:
        usual_area: pixels of an output of which only the shape is known.
    Raises:
        RequestError: one side is given, and the other is too long in the first image's shape.
    """
    first = request.images[0].size
    if request.aspect_ratio == "input":
        return first
    if request.aspect_ratio is not None:
        assert request.shape is not None  # what is not "input" is a shape
        return size_of_shape(request.shape, usual_area)
    if request.width is None and request.height is None:
        return None
    width = request.width or _following("height", request.height, "width", first[0] / first[1])
    height = request.height or _following("width", request.width, "height", first[1] / first[0])
    return width, height


def preferred_size(width: float, height: float, resolutions: Sequence[Resolution]) -> Resolution:
    """Preferred resolution whose width / height is nearest to the image's, in whole tokens.

    On a tie the narrower resolution wins. Both sides are rounded down to multiples of 16.
    Source: FLUX.1 reference code, sampling.py, `prepare_kontext`.
    """
    ratio = width / height
    _, wide, high = min((abs(ratio - w / h), w, h) for w, h in resolutions)
    return wide // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN, high // PIXELS_PER_TOKEN * PIXELS_PER_TOKEN


def size_of_shape(shape: float, area: float) -> Resolution:
    """Size in whole tokens that is nearest to a shape (width / height) at an area in pixels."""
    sides = math.sqrt(area * shape), math.sqrt(area / shape)
    width, height = (max(1, round(side / PIXELS_PER_TOKEN)) * PIXELS_PER_TOKEN for side in sides)
    return width, height


def _following(given: str, side: int | None, other: str, by: float) -> int:
    """The side that was not given, from the one that was and the first image's shape."""
    assert side is not None  # one of the two is
    follows = max(1, round(side * by))
    if follows > LARGEST_SIDE:
        raise RequestError(
            f"{given} is {side}, which makes {other} {follows} in this image's shape, over {LARGEST_SIDE}; "
            f"ask for a smaller {given}, or give both"
        )
    return follows


def _as_the_reference(request: EditRequest, config: ModelConfig) -> SizePlan:
    """The target has the asked sides, every input its preferred size, whatever that does to positions."""
    sizes = [preferred_size(*image.size, config.preferred_resolutions) for image in request.images]
    target = request.width or sizes[0][0], request.height or sizes[0][1]
    return SizePlan(target, tuple(Placement(size, size) for size in sizes), shown=target, output=target)


def _placement(
    size: Resolution, asked: Resolution | None, sampled: Resolution, request: EditRequest, config: ModelConfig
) -> Placement:
    """An input of the target's shape lies on the target's grid; another one keeps its own shape."""
    if asked is not None and _difference(size, asked) <= SAME_SHAPE:
        return Placement(sampled, _part(asked, sampled))
    if asked is not None and request.size_mode == "match":
        own = size_of_shape(_shape(_frame(size)), sampled[0] * sampled[1])
    else:
        own = _preferred(size, config)
    return Placement(own, _part(size, own))


def _preferred(size: Resolution, config: ModelConfig) -> Resolution:
    """Preferred resolution for a size; for one that is too long, the longest grid of the usual area."""
    if _is_too_long(size):
        return size_of_shape(_shape(_frame(size)), config.usual_area)
    return preferred_size(*size, config.preferred_resolutions)


def _within_reach(asked: Resolution, config: ModelConfig) -> tuple[Resolution, tuple[str, ...]]:
    """The grid for an asked size, or the nearest in area that the model samples well, with a warning."""
    width, height = _frame(asked)
    largest, smallest = config.largest_area, min(config.usual_area / SMALLEST_PART, config.largest_area)
    if smallest <= width * height <= largest:
        return _whole_tokens((math.ceil(width), math.ceil(height))), ()
    if width * height > largest:
        sampled = _largest_of_shape(width / height, largest)
        is_beyond = f"above the {largest / 2**20:.3g} megapixels that this model samples well"
        return sampled, (f"{_named(asked)} is {is_beyond}: sampled at {_named(sampled)} and enlarged",)
    sampled = size_of_shape(width / height, smallest)
    return sampled, (f"{_named(asked)} is too small for this model: sampled at {_named(sampled)} and reduced",)


def _largest_of_shape(shape: float, most_pixels: int) -> Resolution:
    area = float(most_pixels)
    while math.prod(sampled := size_of_shape(shape, area)) > most_pixels and area > PIXELS_PER_TOKEN**2:
        area *= 0.99
    return sampled


def _changes(picture: Resolution, asked: Resolution | None, plan: SizePlan) -> Iterator[str]:
    """Warnings of what becomes of the first image's shape."""
    sampled, shown = plan.sampled, plan.shown
    if shown != sampled:
        yield (
            f"the shape of {_named(asked or picture)} is beyond {WIDEST_SHAPE:g}:1: it was kept by sampling "
            f"{_named(sampled)} and cutting {_named(shown)} out of the middle"
        )
    elif asked is None and (change := _difference(picture, sampled)) > NOTICED_CHANGE:
        yield (
            f"the picture's shape changed by {change - 1:.0%}, from {_named(picture)} to {_named(sampled)}; "
            "aspect_ratio=input keeps it"
        )
    if asked is not None and _difference(picture, asked) > SAME_SHAPE:
        yield (
            f"{_named(asked)} has not the shape of the picture, {_named(picture)}: nothing was stretched, "
            "the model adds or leaves out what does not fit"
        )


def _is_too_long(size: Resolution) -> bool:
    return max(size) > WIDEST_SHAPE * min(size)


def _frame(size: Resolution) -> tuple[float, float]:
    """Size with its shorter side extended to the widest shape that is sampled."""
    width, height = size
    return max(width, height / WIDEST_SHAPE), max(height, width / WIDEST_SHAPE)


def _part(picture: Resolution, grid: Resolution) -> Resolution:
    """Part of a grid that shows a picture: all of it, or a strip in the shape of one that is too long."""
    if not _is_too_long(picture):
        return grid
    (width, height), (columns, rows) = picture, grid
    if width > height:
        return columns, max(1, min(rows, round(columns * height / width)))
    return max(1, min(columns, round(rows * width / height))), rows


def _shape(size: tuple[float, float]) -> float:
    return size[0] / size[1]


def _difference(one: Resolution, other: Resolution) -> float:
    """Ratio of two shapes, 1 or more."""
    ratio = _shape(one) / _shape(other)
    return max(ratio, 1 / ratio)


def _whole_tokens(size: Resolution) -> Resolution:
    width, height = (math.ceil(side / PIXELS_PER_TOKEN) * PIXELS_PER_TOKEN for side in size)
    return width, height


def _named(size: Resolution) -> str:
    return f"{size[0]}x{size[1]}"
