"""Pictures: bytes to RGB, RGB to the autoencoder's tensor, and back.

The reference reads an input as it comes. Three things are done differently here, because people expect them, and
`ImageOptions` turns each off: EXIF orientation is applied, transparency is laid on white, and the output is cropped to
the size that was asked for. Only what touches tensors loads torch.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from kontext.config import Resolution
from kontext.errors import ImageError, RequestError

if TYPE_CHECKING:
    from torch import Tensor

OutputFormat = Literal["png", "jpeg", "webp"]

# Raster formats with decoders inside Pillow. Not EPS, PDF and the like: they start other programs. JPEG stands for MPO
# (two pictures in one, as phones write them) as well.
READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")


@dataclass(frozen=True)
class ImageOptions:
    """The three differences from the reference in how pictures come in and go out."""

    apply_exif_orientation: bool = True  # a camera held upright gives an upright picture
    composite_alpha_on_white: bool = True  # instead of whatever colour transparent pixels hide
    crop_to_asked_size: bool = True  # instead of the asked size rounded up to 16

    @classmethod
    def reference(cls) -> ImageOptions:
        """What the reference code does."""
        return cls(apply_exif_orientation=False, composite_alpha_on_white=False, crop_to_asked_size=False)


DEFAULT_OPTIONS = ImageOptions()


def decode_image(data: bytes, *, max_pixels: int = 64_000_000, options: ImageOptions = DEFAULT_OPTIONS) -> Image.Image:
    """Read a whole picture from bytes.

    Args:
        data: the content of a file.
        max_pixels: width * height above which nothing is decoded.
    Returns:
        RGB, with nothing of the file's metadata.
    Raises:
        ImageError: empty, not a picture, cut short, or too many pixels.
    """
    if not data:
        raise ImageError("the picture is empty: 0 bytes")
    image = _open(data)
    if image.width * image.height > max_pixels:
        raise ImageError(f"the picture is too large: {image.width}x{image.height} is over {max_pixels} pixels")
    _load(image)
    return to_rgb(_eight_bits(image), options)


def _open(data: bytes) -> Image.Image:
    """Read the header only; Pillow decodes later."""
    Image.init()  # else Pillow knows a few formats only, and raises KeyError for one that its build lacks
    try:
        return Image.open(io.BytesIO(data), formats=[name for name in READABLE_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageError(f"not a picture that can be read: {_looks_like(data)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the picture is too large: {error}") from error
    except Exception as error:  # decoders meet hostile bytes and raise whatever comes
        raise ImageError(f"the picture cannot be read: {error}") from error


def _load(image: Image.Image) -> None:
    """Decode now, so that a picture cut short fails here and not somewhere later."""
    try:
        image.load()
    except Exception as error:  # decoders meet hostile bytes and raise whatever comes
        raise ImageError(f"the {image.format} picture is damaged or cut short: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16 bits of grey to 8; Pillow's own conversion clips them, which turns scans white."""
    if not image.mode.startswith("I;16"):
        return image
    scaled = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    scaled.info.update(image.info)
    return scaled


def _looks_like(data: bytes) -> str:
    start = data[:64].lstrip()
    if start[:1] == b"<":
        return f"{len(data)} bytes that start like a web page or XML, {start[:24]!r}"
    return f"{len(data)} bytes that start with {data[:12]!r}, expected one of {', '.join(READABLE_FORMATS)}"


def to_rgb(image: Image.Image, options: ImageOptions = DEFAULT_OPTIONS) -> Image.Image:
    """Three channels of 8 bits, without metadata; doing it twice changes nothing."""
    if options.apply_exif_orientation:
        image = ImageOps.exif_transpose(image)
    if options.composite_alpha_on_white and image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    rgb = image.convert("RGB").copy()
    rgb.info.clear()
    rgb.getexif().clear()
    return rgb


def image_to_tensor(image: Image.Image, size: Resolution) -> Tensor:
    """Resize an RGB picture and bring it to -1 ... 1.

    Args:
        size: (width, height) in pixels; Lanczos, nothing is cropped.
    Returns:
        float32, shape (1, 3, height, width).
    """
    import torch

    pixels = np.array(image.resize(size, Image.Resampling.LANCZOS))
    return (torch.from_numpy(pixels).float() / 127.5 - 1.0).permute(2, 0, 1).unsqueeze(0).contiguous()


def tensor_to_image(decoded: Tensor) -> Image.Image:
    """Make 8 bits of a decoded picture, shape (1, 3, height, width).

    The arithmetic is that of the reference's command line: widened to float32 first, then clamped and truncated. (Its
    multi-image front end does the same in the decoder's bfloat16, which differs by at most 1.)
    """
    import torch

    scaled = 127.5 * (decoded[0].float().clamp(-1, 1) + 1.0)
    return Image.fromarray(scaled.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


def crop_to_size(image: Image.Image, size: Resolution) -> Image.Image:
    """Cut the middle of `size` out of a picture that was rounded up to whole tokens."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image if image.size == size else image.crop((left, top, left + size[0], top + size[1]))


def encode_image(
    image: Image.Image, *, output_format: OutputFormat, quality: int = 95, model_name: str, prompt: str | None = None
) -> bytes:
    """Write a result to bytes, marked as made by a model.

    EXIF says what the reference writes: Software "AI generated;img2img;flux", Make, and the model's name; the prompt
    only when given. Nothing of the input picture's metadata is in it.

    Args:
        quality: 1 to 100, for jpeg and webp; png is lossless.
    Raises:
        RequestError: another format.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = "AI generated;img2img;flux"
    exif[ExifTags.Base.Make] = "Black Forest Labs"
    exif[ExifTags.Base.Model] = model_name
    if prompt is not None:
        exif[ExifTags.Base.ImageDescription] = prompt.encode()  # as text Pillow would write "?" for anything but ASCII
    buffer = io.BytesIO()
    if output_format == "png":
        image.save(buffer, "PNG", exif=exif)
    elif output_format == "jpeg":
        image.save(buffer, "JPEG", exif=exif, quality=quality, subsampling=0)
    elif output_format == "webp":
        image.save(buffer, "WEBP", exif=exif, quality=quality)
    else:
        raise RequestError(f"output_format is {output_format!r}, expected png, jpeg or webp")
    return buffer.getvalue()
