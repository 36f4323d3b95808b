"""Noise, schedule, packing, positions, preparation and the Euler loop against `flux.sampling`: exactly equal."""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from kontext import sampling
from kontext.config import PREFERRED_RESOLUTIONS, Resolution
from kontext.images import ImageOptions, image_to_tensor, to_rgb
from kontext.official import OfficialCode, import_official
from kontext.sizes import preferred_size

SIZES = ((16, 16), (256, 256), (100, 72), (1568, 672), (1, 17))  # width, height
INPUT_SIZES = ((640, 480), (480, 640), (1, 1), (1000, 10), (10, 1000), (999, 1001), (1024, 1088), (33, 31))
MODES = ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK")


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 7, 2**64 - 1])
def test_a_seed_gives_the_same_noise(official: OfficialCode, seed: int) -> None:
    for width, height in SIZES:
        theirs = official.sampling.get_noise(1, height, width, "cpu", torch.bfloat16, seed)

        assert torch.equal(sampling.starting_noise(width, height, seed), theirs)


@pytest.mark.parametrize("num_steps", [1, 2, 8, 20, 28, 30, 50, 1000])
def test_times_are_the_same(official: OfficialCode, num_steps: int) -> None:
    for tokens in (1, 16, 256, 1024, 4096, 4116, 16384):
        assert sampling.time_schedule(num_steps, tokens) == official.sampling.get_schedule(num_steps, tokens)


def test_target_tokens_and_positions_are_the_same(official: OfficialCode) -> None:
    for width, height in SIZES:
        noise = sampling.starting_noise(width, height, seed=5)
        theirs = official.sampling.prepare(no_text, no_text, noise, "prompt")

        assert torch.equal(sampling.pack_latents(noise), theirs["img"])
        assert torch.equal(sampling.position_ids(0, *sampling.token_grid(width, height)), theirs["img_ids"])


def test_tokens_are_laid_back_on_the_same_grid(official: OfficialCode) -> None:
    for width, height in SIZES:
        rows, columns = sampling.token_grid(width, height)
        tokens = torch.randn(2, rows * columns, 64)

        assert torch.equal(
            sampling.unpack_latents(tokens, width, height), official.sampling.unpack(tokens, height, width)
        )


@pytest.mark.parametrize("input_size", INPUT_SIZES)
def test_the_same_preferred_resolution_is_chosen(official: OfficialCode, input_size: Resolution) -> None:
    theirs, height, width = prepare(official, Image.new("RGB", input_size))
    rows, columns = sampling.token_grid(width, height)

    assert preferred_size(*input_size, PREFERRED_RESOLUTIONS) == (width, height)
    assert torch.equal(sampling.position_ids(1, rows, columns), theirs["img_cond_seq_ids"])


@pytest.mark.usefixtures("official")
@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_prepared_the_same(mode: str) -> None:
    resolutions = ((97, 64), (64, 64), (64, 100))  # rounded down to multiples of 16 by both
    small = import_official(resolutions)
    for size in ((120, 90), (31, 77)):
        picture = noisy_picture(size).convert(mode)
        theirs, height, width = prepare(small, picture)

        chosen = preferred_size(*size, resolutions)
        ours = image_to_tensor(to_rgb(picture, ImageOptions.reference()), chosen)

        assert chosen == (width, height)
        assert torch.equal(ours, theirs["img_cond_orig"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loop_takes_the_same_steps_with_and_without_pauses(official: OfficialCode, dtype: torch.dtype) -> None:
    # A velocity that depends on everything; the reference tokens are in the sequence and their velocity is dropped.
    def velocity(img: Tensor, timesteps: Tensor, **_: Any) -> Tensor:
        return torch.sin(3 * img) + img.mean(dim=1, keepdim=True) * timesteps[:, None, None]

    tokens, references = torch.randn(2, 1, 12, 64, generator=torch.Generator().manual_seed(4)).to(dtype)
    times = sampling.time_schedule(8, 12)
    others = dict.fromkeys(("img_ids", "txt", "txt_ids", "vec", "img_cond_seq_ids"), torch.zeros(1, 12, 3))
    others["img_cond_seq"] = references

    def our_velocity(latents: torch.Tensor, step: int) -> torch.Tensor:
        return velocity(torch.cat((latents, references), dim=1), latents.new_full((1,), times[step]))[:, :12]

    ours = sampling.integrate(our_velocity, tokens, times)
    theirs = official.sampling.denoise(velocity, tokens, timesteps=times, **others)
    theirs_by_steps = tokens
    for interval in pairwise(times):
        theirs_by_steps = official.sampling.denoise(velocity, theirs_by_steps, timesteps=interval, **others)

    assert torch.equal(ours, theirs)
    assert torch.equal(theirs_by_steps, theirs)


def prepare(official: OfficialCode, picture: Image.Image) -> tuple[dict[str, Tensor], int, int]:
    """Their preparation of a picture, without its text and its latents."""
    file = io.BytesIO()
    picture.save(file, "TIFF")
    prepared: tuple[dict[str, Tensor], int, int] = official.sampling.prepare_kontext(
        no_text, no_text, "prompt", ae=NoAutoencoder(), img_cond_path=file, seed=0, device="cpu"
    )
    return prepared


class NoAutoencoder:
    """Latents of the right shape: a megapixel through a network would take seconds."""

    def encode(self, picture: Tensor) -> Tensor:
        return picture.new_zeros(1, 16, picture.shape[2] // 8, picture.shape[3] // 8)


def no_text(prompt: list[str]) -> Tensor:
    return torch.zeros(1, 4, 8)


def noisy_picture(size: Resolution) -> Image.Image:
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
