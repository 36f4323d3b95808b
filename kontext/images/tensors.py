"""RGB pictures to the autoencoder's tensors, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from PIL import Image

from kontext.config import Resolution
from kontext.errors import NotANumber

if TYPE_CHECKING:
    from torch import Tensor


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

    Raises:
        NotANumber: the picture holds a NaN or an infinity, which 8 bits would show as black or white.
    """
    import torch

    values = decoded[0].float()
    _refuse_what_is_no_number(values)
    scaled = 127.5 * (values.clamp(-1, 1) + 1.0)
    return Image.fromarray(scaled.permute(1, 2, 0).to("cpu", torch.uint8).numpy())


def _refuse_what_is_no_number(values: Tensor) -> None:
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise NotANumber(
            f"the model's picture is not a number in {wrong} of its {values.numel()} values (NaN or infinite): "
            "check the weights (sha256), then try float32 or bfloat16 without fp8"
        )


def refuse_one_colour(image: Image.Image, inputs: Sequence[Image.Image]) -> None:
    """Refuse a result of one colour where no input has one: a sampling that broke down without a NaN looks like that.

    Raises:
        NotANumber: every pixel of the result has the same colour.
    """
    if _has_one_colour(image) and not any(_has_one_colour(given) for given in inputs):
        raise NotANumber(
            "the model's image has one colour only, as when values overflow: "
            "check the weights (sha256), then try float32 or bfloat16 without fp8"
        )


def _has_one_colour(image: Image.Image) -> bool:
    return all(low == high for low, high in cast("tuple[tuple[int, int], ...]", image.convert("RGB").getextrema()))


def crop_to_size(image: Image.Image, size: Resolution) -> Image.Image:
    """Cut the middle of `size` out of a picture that was rounded up to whole tokens."""
    left, top = (image.width - size[0]) // 2, (image.height - size[1]) // 2
    return image if image.size == size else image.crop((left, top, left + size[0], top + size[1]))
