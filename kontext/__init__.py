"""FLUX.1 Kontext picture edits in plain PyTorch.

`load("/models/FLUX.1-Kontext-dev").edit(image, "make it snow", seed=7)` is the whole of it.
Errors and pictures come without torch; the engine brings it when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kontext.errors import BudgetError, CheckpointError, DeviceError, ImageError, KontextError, NotANumber, RequestError
from kontext.images import DecodedImage, ImageOptions, decode_image, decode_with_warnings, encode_image

if TYPE_CHECKING:
    from kontext.loading import load
    from kontext.pipeline import Edited, Kontext

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DecodedImage",
    "DeviceError",
    "Edited",
    "ImageError",
    "ImageOptions",
    "Kontext",
    "KontextError",
    "NotANumber",
    "RequestError",
    "decode_image",
    "decode_with_warnings",
    "encode_image",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("kontext.loading").load
    if name in ("Edited", "Kontext"):
        return getattr(import_module("kontext.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
