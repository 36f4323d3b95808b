"""A result to bytes, marked as made by a model."""

from __future__ import annotations

import io
from functools import cache
from typing import Any, Literal

from PIL import ExifTags, Image, ImageCms

from kontext.config import ModelConfig
from kontext.errors import RequestError

MAKE_OF_THEIR_WEIGHTS = "Black Forest Labs"
MAKE = "kontext-edits"

OutputFormat = Literal["png", "jpeg", "webp"]


def encode_image(
    image: Image.Image,
    *,
    output_format: OutputFormat,
    quality: int = 95,
    model_name: str,
    prompt: str | None = None,
    embed_srgb: bool = False,
) -> bytes:
    """Write a result to bytes, marked as made by a model.

    EXIF says what the reference writes: Software "AI generated;img2img;flux", Make, and the model's name; the prompt
    only when given. Make is Black Forest Labs for their weights, and this project for every other model. Nothing of
    the input picture's metadata is in it.

    Args:
        quality: 1 to 100, for jpeg and webp; png is lossless.
        embed_srgb: add the sRGB colour profile (some 600 bytes) for software that guesses without one. Colours are
            sRGB either way, which is what viewers take a picture without a profile for.
    Raises:
        RequestError: another format.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "AI generated;img2img;flux"
    exif[ExifTags.Base.Make] = MAKE_OF_THEIR_WEIGHTS if model_name == ModelConfig.name else MAKE
    exif[ExifTags.Base.Model] = model_name
    if prompt is not None:
        exif[ExifTags.Base.ImageDescription] = prompt.encode()  # as text Pillow would write "?" for anything but ASCII
    metadata: dict[str, Any] = {"exif": exif}
    if embed_srgb:
        metadata["icc_profile"] = _srgb_profile()
    buffer = io.BytesIO()
    if output_format == "png":
        image.save(buffer, "PNG", **metadata)
    elif output_format == "jpeg":
        image.save(buffer, "JPEG", **metadata, quality=quality, subsampling=0)
    elif output_format == "webp":
        image.save(buffer, "WEBP", **metadata, quality=quality)
    else:
        raise RequestError(f"output_format is {output_format!r}, expected png, jpeg or webp")
    return buffer.getvalue()


@cache
def _srgb_profile() -> bytes:
    """The sRGB profile without the date of its making: the same picture gives the same bytes on any day."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    date = slice(24, 36)  # dateTimeNumber in the profile header, ICC.1:2010 table 17
    identifier = slice(84, 100)  # MD5 of the profile; zeros mean "not computed"
    written = bytearray(profile)
    written[date] = bytes.fromhex("07d0 0001 0001 0000 0000 0000")  # 1 January 2000
    written[identifier] = bytes(16)
    return bytes(written)
