"""One edit as a value: the request, checked before anything is computed, and the edited image. Needs no torch."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from kontext.config import PIXELS_PER_TOKEN
from kontext.errors import RequestError

MOST_IMAGES = 4
MOST_STEPS = 1000
MOST_GUIDANCE = 100.0
MOST_LORAS = 4
MOST_LORA_SCALE = 10.0
LARGEST_SIDE = 4096  # pixels
LARGEST_SEED = 2**64 - 1  # of torch's generators

SizeMode = Literal["match", "fit", "reference"]
SIZE_MODES: tuple[str, ...] = get_args(SizeMode)
WIDEST_RATIO = 21 / 9

OnStep = Callable[[int, int], None]  # (steps done, total)


def random_seed() -> int:
    """A seed of 32 bits for a request that names none."""
    return secrets.randbits(32)


@dataclass(frozen=True)
class Lora:
    """A LoRA file and how strongly it acts.

    Args:
        path: a safetensors file.
        scale: factor of what it adds, -10 to 10; 0 is as without it.
        name: for messages; the file's name when empty.
    Raises:
        RequestError: a value cannot work.
    """

    path: Path
    scale: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.path, Path):
            raise RequestError(f"a LoRA's path is a {type(self.path).__name__}, expected a pathlib.Path")
        if not _is_number(self.scale) or not -MOST_LORA_SCALE <= self.scale <= MOST_LORA_SCALE:
            raise RequestError(
                f"a LoRA's scale is {self.scale!r}, expected -{MOST_LORA_SCALE:g} to {MOST_LORA_SCALE:g}"
            )


@dataclass(frozen=True)
class EditRequest:
    """One edit: images, prompt, sampling parameters and size.

    Args:
        images: 1 to 4 in RGB; the first sets the size. `decode_image` and `to_rgb` make them and handle orientation and
            transparency; an engine takes the pixels as they are.
        prompt: the instruction.
        guidance_scale: how closely the edit follows the prompt, 0 to 100.
        seed: of the starting noise.
        width, height: pixels of the output. Of two that are None both follow from the preferred resolution for the
            first image, of one that is None its shape decides.
        size_mode: "match": the target is sampled at the asked size and the images are brought to its grid; "fit": all
            are at preferred resolutions and the result is resampled; "reference": as in the official code, where the
            images keep their preferred resolutions and each side that is None is that of the first.
        aspect_ratio: instead of width and height. "input": the output has the first image's own size; "16:9" and
            others from 21:9 to 9:21: that shape at the model's usual area.
        loras: up to 4 LoRAs, which act together.
    Raises:
        RequestError: a value cannot work; the message names it and what is expected.
    """

    images: tuple[Image.Image, ...]
    prompt: str
    num_inference_steps: int = 30
    guidance_scale: float = 2.5
    seed: int = field(default_factory=random_seed)
    width: int | None = None
    height: int | None = None
    size_mode: SizeMode = "match"
    aspect_ratio: str | None = None
    loras: tuple[Lora, ...] = ()

    @property
    def shape(self) -> float | None:
        """Width / height of the output that `aspect_ratio` names in numbers."""
        numbers = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", self.aspect_ratio or "")
        return int(numbers[1]) / int(numbers[2]) if numbers else None

    def __post_init__(self) -> None:
        if not isinstance(self.images, tuple):
            raise RequestError(f"images is a {type(self.images).__name__}, expected a tuple of PIL pictures")
        if not 1 <= len(self.images) <= MOST_IMAGES:
            raise RequestError(f"images holds {len(self.images)} pictures, expected 1 to {MOST_IMAGES}")
        for image in self.images:
            if not isinstance(image, Image.Image):
                raise RequestError(f"images holds a {type(image).__name__}, expected PIL pictures")
            if image.mode != "RGB":
                raise RequestError(f"images holds a picture of mode {image.mode}, expected RGB; use kontext.to_rgb")
        if not isinstance(self.prompt, str):
            raise RequestError(f"prompt is a {type(self.prompt).__name__}, expected text")
        _check_whole("num_inference_steps", self.num_inference_steps, 1, MOST_STEPS)
        _check_whole("seed", self.seed, 0, LARGEST_SEED)
        for name, side in (("width", self.width), ("height", self.height)):
            if side is not None:
                _check_whole(name, side, PIXELS_PER_TOKEN, LARGEST_SIDE)
        if not isinstance(self.loras, tuple) or not all(isinstance(lora, Lora) for lora in self.loras):
            raise RequestError("loras is expected to be a tuple of kontext.Lora")
        if len(self.loras) > MOST_LORAS:
            raise RequestError(f"loras holds {len(self.loras)}, expected at most {MOST_LORAS}")
        if not _is_number(self.guidance_scale) or not 0 <= self.guidance_scale <= MOST_GUIDANCE:
            raise RequestError(f"guidance_scale is {self.guidance_scale!r}, expected 0 to {MOST_GUIDANCE:g}")
        if self.size_mode not in SIZE_MODES:
            raise RequestError(f"size_mode is {self.size_mode!r}, expected {', '.join(SIZE_MODES)}")
        if self.aspect_ratio is not None:
            self._check_aspect_ratio()

    def _check_aspect_ratio(self) -> None:
        ratio = self.aspect_ratio
        if ratio != "input" and (self.shape is None or not 1 / WIDEST_RATIO <= self.shape <= WIDEST_RATIO):
            raise RequestError(f"aspect_ratio is {ratio!r}, expected input, or a shape from 21:9 to 9:21 such as 16:9")
        if self.width is not None or self.height is not None:
            raise RequestError(f"aspect_ratio is {ratio!r} beside width or height; give one or the other")
        if self.size_mode == "reference":
            raise RequestError(f"aspect_ratio is {ratio!r}, which size_mode 'reference' does not know; leave one out")


@dataclass(frozen=True)
class Edited:
    """An edit's image and how it came about."""

    image: Image.Image
    seed: int
    timings: dict[str, float]  # seconds of "encode", "sample", "decode"
    warnings: tuple[str, ...] = ()
    steps_computed: int | None = None  # where steps may be skipped; None: all of them


def _check_whole(name: str, value: int, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise RequestError(f"{name} is {value!r}, expected a whole number from {least} to {most}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
