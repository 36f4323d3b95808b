"""Colours and depths of what files hold, brought to 8 bits of sRGB."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from kontext.errors import ImageError

Warnings = tuple[str, ...]

ROWS_AT_ONCE = 256  # of a deep picture while it is scaled, to bound memory

TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC, TIFF_SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED_INTEGER = 0, 2

MOST_DIFFERENCE_OF_SRGB = 2
"""Profiles that change no colour by more, of 255, are taken for sRGB: rounding alone would change the pixels."""

CHANNELS = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's mode of the pixels that a profile's colour space describes."""


def to_eight_bits(image: Image.Image) -> tuple[Image.Image, Warnings]:
    """Scale grey of more than 8 bits; Pillow's own conversion clips it, which turns scans white.

    16 bits are divided by 257. 32 bits and floats say nothing about their range: it is taken from the largest value,
    with a warning unless it is certain.

    Raises:
        ImageError: no value is a number.
    """
    if not image.mode.startswith("I;16") and image.mode not in ("I", "F"):
        return image, ()
    values = np.asarray(image)
    white, warnings = _white_of(image, values)
    grey = Image.fromarray(_scaled(values, white, inverted=_tag(image, TIFF_PHOTOMETRIC) == WHITE_IS_ZERO))
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):
        grey.putalpha(Image.fromarray(np.where(values == hidden, 0, 255).astype(np.uint8)))
    grey.info.update({key: value for key, value in image.info.items() if key != "transparency"})
    return grey, warnings


def _white_of(image: Image.Image, values: NDArray[Any]) -> tuple[float, Warnings]:
    """The value that stands for white."""
    if image.mode.startswith("I;16"):
        bits = _tag(image, TIFF_BITS_PER_SAMPLE)
        return (4095.0 if bits in (12, (12,)) else 65535.0), ()
    if image.mode == "I" and image.format == "PPM":
        return 65535.0, ()  # Pillow scales whatever the file calls its largest value
    if image.mode == "I":
        largest = float(values.max()) if values.min() >= 0 or _is_signed(image) else 2.0**32 - 1
        white = next(range_ for range_ in (255.0, 65535.0, 2.0**32 - 1) if largest <= range_)
        return white, (f"32-bit values up to {largest:.0f} were read as 0 to {white:.0f}",)
    numbers = values[np.isfinite(values)]
    if not numbers.size:
        raise ImageError("the picture is not a number (NaN) in every pixel")
    warnings = (
        ("values that are not numbers (NaN or infinite) were read as black",) if numbers.size < values.size else ()
    )
    largest = float(numbers.max())
    if largest <= 1:
        return 1.0, warnings
    # Up to 16 it is light above white, as renderers write it; beyond that, integers kept as floats.
    white = largest if largest <= 16 or largest > 65535 else 255.0 if largest <= 255 else 65535.0
    return white, (*warnings, f"floating values up to {largest:.6g} were read as 0 to {white:.6g}")


def _is_signed(image: Image.Image) -> bool:
    return _tag(image, TIFF_SAMPLE_FORMAT) in (SIGNED_INTEGER, (SIGNED_INTEGER,))


def _scaled(values: NDArray[Any], white: float, *, inverted: bool) -> NDArray[np.uint8]:
    scaled = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), ROWS_AT_ONCE):
        rows = values[top : top + ROWS_AT_ONCE]
        if white == 2.0**32 - 1:
            rows = rows.view(np.uint32)
        light = np.nan_to_num(rows.astype(np.float64), nan=0, posinf=0, neginf=0) * (255 / white)
        scaled[top : top + ROWS_AT_ONCE] = (255 - light if inverted else light).clip(0, 255).round()
    return scaled


def _tag(image: Image.Image, number: int) -> Any:
    return getattr(image, "tag_v2", {}).get(number)


def to_srgb(image: Image.Image) -> tuple[Image.Image, Warnings]:
    """Apply the colour profile of a picture, relative colorimetric with black point compensation.

    CMYK is brought to sRGB by the intent that its profile names, as print profiles have a table for each. A profile
    that cannot be used is ignored with a warning.

    Returns:
        The picture itself when it has no profile or an sRGB one, otherwise RGB or RGBA.
    """
    if image.mode == "LAB":
        return _apply(image, ImageCms.createProfile("LAB"), "LAB", ImageCms.Intent.RELATIVE_COLORIMETRIC), ()
    data = image.info.get("icc_profile")
    if not data:
        return image, ("CMYK without a colour profile: the colours are approximate",) if image.mode == "CMYK" else ()
    try:
        return _apply_profile(image, ImageCms.ImageCmsProfile(io.BytesIO(data))), ()
    except Exception as error:  # LittleCMS and Pillow raise whatever comes for bytes that are no profile
        return image, (f"the colour profile cannot be used and was ignored ({error}): colours may differ",)


def _apply_profile(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    space = profile.profile.xcolor_space.strip()
    kind = "CMYK" if image.mode == "CMYK" else "GRAY" if Image.getmodebase(image.mode) == "L" else "RGB"
    if space not in CHANNELS or (kind != space and (kind, space) != ("GRAY", "RGB")):
        raise ValueError(f"it is for {space}, the picture is {kind}")
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    if space == "CMYK":
        intent = ImageCms.Intent(profile.profile.rendering_intent)
    elif _is_srgb(profile, CHANNELS[space]):
        return image
    if not image.has_transparency_data:
        return _apply(image.convert(CHANNELS[space]), profile, CHANNELS[space], intent)
    rgba = image.convert("RGBA")
    opaque = _apply(rgba.convert(CHANNELS[space]), profile, CHANNELS[space], intent)
    opaque.putalpha(rgba.getchannel("A"))
    return opaque


def _is_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> bool:
    sample = _sample(mode)
    shown = _apply(sample, profile, mode, ImageCms.Intent.RELATIVE_COLORIMETRIC)
    difference = np.asarray(shown, np.int16) - np.asarray(sample.convert("RGB"), np.int16)
    return bool(np.abs(difference).max() <= MOST_DIFFERENCE_OF_SRGB)


@cache
def _sample(mode: str) -> Image.Image:
    """Colours all over the range: 256 greys, or a cube of 17 steps a side."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3))


def _apply(image: Image.Image, profile: Any, mode: str, intent: ImageCms.Intent) -> Image.Image:
    transform = ImageCms.buildTransform(
        profile,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        renderingIntent=intent,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    shown = ImageCms.applyTransform(image, transform)
    assert shown is not None  # only in place it returns nothing
    return shown
