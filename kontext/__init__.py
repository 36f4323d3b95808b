"""FLUX.1 Kontext picture edits in plain PyTorch.

`load("/models/FLUX.1-Kontext-dev").edit(image, "make it snow", seed=7)` is the whole of it.
"""

from kontext.errors import CheckpointError, DeviceError, ImageError, KontextError, RequestError
from kontext.images import ImageOptions, decode_image, encode_image
from kontext.pipeline import Edited, Kontext, load

__all__ = [
    "CheckpointError",
    "DeviceError",
    "Edited",
    "ImageError",
    "ImageOptions",
    "Kontext",
    "KontextError",
    "RequestError",
    "decode_image",
    "encode_image",
    "load",
]
