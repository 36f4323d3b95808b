"""FLUX.1 Kontext picture edits in plain PyTorch.

`load("/models/FLUX.1-Kontext-dev").edit(image, "make it snow", seed=7)` is the whole of it.
Errors, images and requests come without torch; the engine brings it when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kontext.errors import (
    BudgetError,
    CheckpointError,
    DeviceError,
    DeviceTaken,
    ImageError,
    KontextError,
    LoraError,
    ModelLost,
    NotANumber,
    RequestError,
)
from kontext.images import DecodedImage, ImageOptions, decode_image, decode_with_warnings, encode_image, to_rgb
from kontext.request import Edited, EditRequest, Lora
from kontext.step_cache import StepCache

if TYPE_CHECKING:
    from kontext.loading import load
    from kontext.options import EngineOptions
    from kontext.pipeline import Kontext

__all__ = [
    "BudgetError",
    "CheckpointError",
    "DecodedImage",
    "DeviceError",
    "DeviceTaken",
    "EditRequest",
    "Edited",
    "EngineOptions",
    "ImageError",
    "ImageOptions",
    "Kontext",
    "KontextError",
    "Lora",
    "LoraError",
    "ModelLost",
    "NotANumber",
    "RequestError",
    "StepCache",
    "decode_image",
    "decode_with_warnings",
    "encode_image",
    "load",
    "to_rgb",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        return import_module("kontext.loading").load
    if name == "EngineOptions":
        return import_module("kontext.options").EngineOptions
    if name == "Kontext":
        return import_module("kontext.pipeline").Kontext
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
