"""Local images: reading them small, and laying them side by side. Pillow is loaded only here, when it is needed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from producer.errors import SetupError, TableError
from producer.files import naming_what_is_written

COMPARED_HEIGHT = 768
"""Pixels; no image is enlarged."""
GAP = 12
SHEET_SIDE = 200
SHEET_COLUMNS = 4
"""Pairs beside each other on a sheet."""
HALF_GAP = 4
BACKGROUND = (214, 214, 210)
"""A grey on which black and white images both stand out."""


def pillow() -> Any:
    """The package Pillow.

    Raises:
        SetupError: it is not installed.
    """
    try:
        import_module("PIL.ImageOps")
        return import_module("PIL")
    except ImportError as error:
        raise SetupError("looking at images needs Pillow: pip install Pillow") from error


def write_side_by_side(paths: Sequence[Path], target: Path) -> None:
    """Write images beside each other at one height, as viewers turn them.

    Raises:
        SetupError: Pillow is not installed.
        TableError: one cannot be read, or the result not be written.
    """
    images = [_open(path) for path in paths]
    height = min(COMPARED_HEIGHT, max(image.height for image in images))
    scaled = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    width = sum(image.width for image in scaled) + GAP * (len(scaled) - 1)
    sheet = pillow().Image.new("RGB", (width, height), BACKGROUND)
    left = 0
    for image in scaled:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    with naming_what_is_written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)


def write_sheet(pairs: Sequence[tuple[Path | None, Path | None]], target: Path) -> None:
    """Write small images as pairs, before and after, in a grid on one image.

    Raises:
        SetupError: Pillow is not installed.
        TableError: the sheet cannot be written.
    """
    side, columns = SHEET_SIDE, min(SHEET_COLUMNS, max(1, len(pairs)))
    lines = max(1, -(-len(pairs) // columns))
    width, height = 2 * side + HALF_GAP + GAP, side + GAP
    sheet = pillow().Image.new("RGB", (columns * width + GAP, lines * height + GAP), BACKGROUND)
    for place, pair in enumerate(pairs):
        for half, path in enumerate(pair):
            if path is not None and path.is_file():
                image = _open(path)
                image.thumbnail((side, side))
                left, top = GAP + place % columns * width + half * (side + HALF_GAP), GAP + place // columns * height
                sheet.paste(image, (left + (side - image.width) // 2, top + (side - image.height) // 2))
    with naming_what_is_written(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(target)


def thumbnail(source: Path | bytes, longest_side: int) -> bytes | None:
    """A small JPEG of an image, as viewers turn it; None when it cannot be read."""
    modules = pillow()
    try:
        with modules.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.draft("RGB", (longest_side, longest_side))  # a JPEG is decoded small
            small = modules.ImageOps.exif_transpose(image)
            small.thumbnail((longest_side, longest_side))
            return _jpeg(small)
    except (OSError, ValueError, SyntaxError, modules.Image.DecompressionBombError):
        return None


def _jpeg(image: Any) -> bytes:
    flat = pillow().Image.new("RGB", image.size, "white")
    flat.paste(image.convert("RGB"), mask=image.convert("RGBA").getchannel("A") if "A" in image.getbands() else None)
    buffer = io.BytesIO()
    flat.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def _open(path: Path) -> Any:
    modules = pillow()
    try:
        with modules.Image.open(path) as image:
            return modules.ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, modules.Image.DecompressionBombError) as error:
        raise TableError(f"{path}: cannot be shown ({error})") from error
