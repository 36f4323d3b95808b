"""Pictures: bytes to RGB, RGB to the autoencoder's tensor, and back.

The reference reads an input as it comes. What is done differently here, because people expect it, is an option each in
`ImageOptions`; docs/pictures.md says what becomes of every format. Only what touches tensors loads torch.
"""

from __future__ import annotations

from kontext.images.decoding import (
    LONGEST_SIDE,
    READABLE_FORMATS,
    DecodedImage,
    decode_image,
    decode_with_warnings,
    to_rgb,
)
from kontext.images.encoding import OutputFormat, encode_image
from kontext.images.options import DEFAULT_OPTIONS, ImageOptions
from kontext.images.tensors import crop_to_size, image_to_tensor, refuse_one_colour, tensor_to_image

__all__ = [
    "DEFAULT_OPTIONS",
    "LONGEST_SIDE",
    "READABLE_FORMATS",
    "DecodedImage",
    "ImageOptions",
    "OutputFormat",
    "crop_to_size",
    "decode_image",
    "decode_with_warnings",
    "encode_image",
    "image_to_tensor",
    "refuse_one_colour",
    "tensor_to_image",
    "to_rgb",
]
