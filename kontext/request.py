"""One edit as it was asked for, checked before anything is computed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from kontext.config import PIXELS_PER_TOKEN
from kontext.errors import RequestError

MOST_IMAGES = 4
MOST_STEPS = 1000
MOST_GUIDANCE = 100.0
LARGEST_SIDE = 4096  # pixels
LARGEST_SEED = 2**64 - 1  # of torch's generators


@dataclass(frozen=True)
class EditRequest:
    """What to edit and how.

    Raises:
        RequestError: a value cannot work; the message names it and what is expected.
    """

    pictures: tuple[Image.Image, ...]
    prompt: str
    num_inference_steps: int
    guidance_scale: float
    seed: int
    width: int | None
    height: int | None

    def __post_init__(self) -> None:
        if not 1 <= len(self.pictures) <= MOST_IMAGES:
            raise RequestError(f"images holds {len(self.pictures)} pictures, expected 1 to {MOST_IMAGES}")
        for picture in self.pictures:
            if not isinstance(picture, Image.Image):
                raise RequestError(f"images holds a {type(picture).__name__}, expected PIL pictures")
        if not isinstance(self.prompt, str):
            raise RequestError(f"prompt is a {type(self.prompt).__name__}, expected text")
        _check_whole("num_inference_steps", self.num_inference_steps, 1, MOST_STEPS)
        _check_whole("seed", self.seed, 0, LARGEST_SEED)
        _check_whole("width", self.width, PIXELS_PER_TOKEN, LARGEST_SIDE)
        _check_whole("height", self.height, PIXELS_PER_TOKEN, LARGEST_SIDE)
        if not _is_number(self.guidance_scale) or not 0 <= self.guidance_scale <= MOST_GUIDANCE:
            raise RequestError(f"guidance_scale is {self.guidance_scale!r}, expected 0 to {MOST_GUIDANCE:g}")


def edit_request(
    images: Image.Image | Sequence[Image.Image],
    prompt: str,
    num_inference_steps: int,
    guidance_scale: float,
    seed: int | None,
    width: int | None,
    height: int | None,
) -> EditRequest:
    """The request with its one picture in a tuple and, where none was given, a random seed of 32 bits."""
    pictures = (images,) if isinstance(images, Image.Image) else tuple(images)
    seed = secrets.randbits(32) if seed is None else seed
    return EditRequest(pictures, prompt, num_inference_steps, guidance_scale, seed, width, height)


def _check_whole(name: str, value: int | None, least: int, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name} is {value!r}, expected a whole number from {least} to {most}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
