"""Bytes to RGB. Whatever a picture does while it is read is an `ImageError`."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps

from kontext.errors import ImageError
from kontext.images.colours import Warnings, to_eight_bits, to_srgb
from kontext.images.naming import name_what_it_is
from kontext.images.options import DEFAULT_OPTIONS, ImageOptions

# Raster formats with decoders inside Pillow or pi-heif. Not EPS, PDF and the like: they start other programs. JPEG
# stands for MPO (two pictures in one, as phones write them) as well.
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "PPM")

LONGEST_SIDE = 65_535
"""Pixels, as in the largest JPEG. A picture of one column and 64 million rows takes 40 times the memory of a square."""

END_OF_JPEG = b"\xff\xd9"
MOST_MISSING = 0.02
"""Part of a JPEG's pixels that may be missing at its end, as a row of blocks in a photo is."""

Canvas = Callable[[tuple[int, int]], Image.Image]
"""Makes an RGB image of that size to decode into; its pixels may be those of an earlier image."""

TIFF_SUBFILE_TYPE, TIFF_SUB_IFDS, TIFF_DNG_VERSION = 254, 330, 50706


@dataclass(frozen=True)
class DecodedImage:
    """A picture as RGB, and what a reader of the result should know about how it was read."""

    image: Image.Image
    warnings: tuple[str, ...] = ()


def decode_image(data: bytes, *, max_pixels: int = 64_000_000, options: ImageOptions = DEFAULT_OPTIONS) -> Image.Image:
    """Read a whole picture from bytes; `decode_with_warnings` without the warnings."""
    return decode_with_warnings(data, max_pixels=max_pixels, options=options).image


def decode_with_warnings(
    data: bytes,
    *,
    max_pixels: int = 64_000_000,
    options: ImageOptions = DEFAULT_OPTIONS,
    canvas: Canvas | None = None,
) -> DecodedImage:
    """Read a whole picture from bytes.

    Args:
        data: the content of a file.
        max_pixels: width * height above which nothing is decoded.
        canvas: memory for the pixels of JPEGs that need no conversion; others get their own.
    Returns:
        RGB, with nothing of the file's metadata, and what was forgiven or guessed.
    Raises:
        ImageError: empty, not a picture, damaged, cut short, or too large.
    """
    if not data:
        raise ImageError("the picture is empty: 0 bytes")
    image = _open(data)
    _check_size(image, max_pixels)
    image, warnings = _load(image, data, canvas)
    rgb = _convert(image, options)
    return DecodedImage(rgb.image, warnings + rgb.warnings)


def to_rgb(image: Image.Image, options: ImageOptions = DEFAULT_OPTIONS) -> Image.Image:
    """Three channels of 8 bits, without metadata; doing it twice changes nothing."""
    rgb = _convert(image, options).image
    return rgb.copy() if rgb.im is image.im else rgb


def _open(data: bytes) -> Image.Image:
    """Read the header only; Pillow decodes later.

    The registered decoders are asked one by one, as `Image.open` does, which has a limit of its own for the size and
    keeps to itself why a decoder refused.
    """
    _register_decoders()
    prefix = data[:16].ljust(16, b"\0")  # decoders look at bytes that shorter files do not have
    refusals = []
    for name in READABLE_FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))
        if factory is None or (accept is not None and accept(prefix) is not True):
            continue
        try:
            return factory(io.BytesIO(data), "")
        except Exception as error:  # decoders meet hostile bytes and raise whatever comes
            refusals.append(f"the picture cannot be read as {name}: {_first_line(error)}")
    raise ImageError(refusals[0] if refusals else f"not a picture that can be read: {name_what_it_is(data)}")


def _register_decoders() -> None:
    Image.init()  # otherwise Pillow knows a few formats only
    if "HEIF" not in Image.OPEN:
        try:
            import pi_heif  # type: ignore[import-untyped]
        except ImportError:
            return
        pi_heif.register_heif_opener()


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width}x{image.height}"
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"the picture is too large: {size} is over {max_pixels} pixels (DG_MAX_INPUT_PIXELS): scale it down"
        )
    if max(image.size) > LONGEST_SIDE:
        raise ImageError(f"the picture is too large: {size} has a side over {LONGEST_SIDE} pixels: scale or crop it")


def _load(image: Image.Image, data: bytes, canvas: Canvas | None) -> tuple[Image.Image, Warnings]:
    """Decode now, so that a picture cut short fails here and not somewhere later."""
    if _is_raw(image, data):
        raise ImageError("the picture is a camera's raw file: develop it to JPEG or TIFF")
    is_jpeg = image.format in ("JPEG", "MPO")
    if canvas and is_jpeg and image.mode == "RGB":
        # Only JPEG's decoder sets every pixel or raises; in others a hole would show what the memory held before.
        image.im = canvas(image.size).im
    try:
        image.load()
    except Exception as error:  # decoders meet hostile bytes and raise whatever comes
        whole = _without_its_end(data) if is_jpeg else None
        if whole is None:
            raise ImageError(f"the {image.format} picture is damaged or cut short: {_first_line(error)}") from error
        return whole, ("the JPEG picture lacks its end; what there is of it was used",)
    return image, ()


def _is_raw(image: Image.Image, data: bytes) -> bool:
    """Recognize a TIFF that is a camera's raw file (DNG, NEF, ARW, CR2), of which Pillow would read a small preview."""
    tags = getattr(image, "tag_v2", {})
    is_preview = tags.get(TIFF_SUBFILE_TYPE) == 1 and TIFF_SUB_IFDS in tags
    return is_preview or TIFF_DNG_VERSION in tags or (image.format == "TIFF" and data[8:10] == b"CR")


def _without_its_end(data: bytes) -> Image.Image | None:
    """A JPEG that lacks only its end, or None when more of it is missing.

    The decoder fills missing blocks silently from the bits that follow. It therefore gets two different ends: pixels
    that differ between the two results were not in the file.
    """
    cut = data.rstrip(b"\xff")
    try:
        image, other = (_loaded_jpeg(cut + end) for end in (END_OF_JPEG, b"\x55" * 65_536 + END_OF_JPEG))
    except Exception:  # decoders meet hostile bytes and raise whatever comes
        return None
    missing = (np.asarray(image) != np.asarray(other)).reshape(image.width * image.height, -1).any(axis=1).mean()
    return image if missing <= MOST_MISSING else None


def _loaded_jpeg(data: bytes) -> Image.Image:
    factory, _ = Image.OPEN["JPEG"]
    image = factory(io.BytesIO(data), "")
    image.load()
    return image


def _convert(image: Image.Image, options: ImageOptions) -> DecodedImage:
    kind = f"the {image.format} picture" if image.format else "the picture"
    try:
        return _rgb(image, options)
    except ImageError:
        raise
    except Exception as error:  # palettes, transparency and EXIF are only judged when they are used
        raise ImageError(f"{kind} is damaged: {_first_line(error)}") from error


def _rgb(image: Image.Image, options: ImageOptions) -> DecodedImage:
    warnings: Warnings = ()
    if options.scale_deep_formats:
        image, warnings = to_eight_bits(image)
    if options.apply_exif_orientation:
        image = _upright(image)
    if options.apply_colour_profile:
        image, of_colours = to_srgb(image)
        warnings += of_colours
    if options.composite_alpha_on_white and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # which would copy RGB
    rgb.load()
    return DecodedImage(Image.new("RGB", (0, 0))._new(rgb.im), warnings)  # without metadata


def _upright(image: Image.Image) -> Image.Image:
    try:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(image)  # which copies a picture that is upright
    except Exception as error:  # EXIF is parsed and rewritten with the types that the file declares
        reason = _first_line(error)
        raise ImageError(f"the picture's EXIF data is damaged ({reason}): save it again without metadata") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
