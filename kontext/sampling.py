"""Noise, packing, positions, schedule and the Euler loop, as pure functions.

Flow matching: a latent is x_t = (1 - t) * image + t * noise. The transformer predicts the velocity dx/dt, and sampling
integrates it from t = 1 to t = 0. Source: FLUX.1 reference code, sampling.py; Esser et al. 2024, "Scaling Rectified
Flow Transformers", for the time shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor

from kontext.config import LATENT_CHANNELS, PIXELS_PER_TOKEN
from kontext.request import OnStep


def token_grid(width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of tokens that cover an image of this size in pixels."""
    return math.ceil(height / PIXELS_PER_TOKEN), math.ceil(width / PIXELS_PER_TOKEN)


def starting_noise(width: int, height: int, seed: int) -> Tensor:
    """Draw the latents at t = 1.

    The draw is in bfloat16 on the CPU, wherever the model runs, so that a seed gives the same noise on every device.
    The values depend on the torch release (see docs/numerics.md) and on the low 32 bits of the seed.

    Returns:
        bfloat16, shape (1, 16, 2 * rows, 2 * columns) of the token grid.
    """
    rows, columns = token_grid(width, height)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    return torch.randn(1, LATENT_CHANNELS, 2 * rows, 2 * columns, dtype=torch.bfloat16, generator=generator)


def pack_latents(latents: Tensor) -> Tensor:
    """Pack every 2x2 latents into one token: (batch, 16, 2 * rows, 2 * columns) to (batch, rows * columns, 64)."""
    return rearrange(latents, "b c (row ph) (column pw) -> b (row column) (c ph pw)", ph=2, pw=2)


def unpack_latents(tokens: Tensor, width: int, height: int) -> Tensor:
    """Unpack tokens to latents on their grid.

    Args:
        tokens: packed latents, shape (batch, rows * columns, 64).
        width, height: size of the image in pixels.
    Returns:
        Shape (batch, 16, 2 * rows, 2 * columns).
    Raises:
        ValueError: the number of tokens does not fit the size.
    """
    rows, columns = token_grid(width, height)
    if tokens.shape[1] != rows * columns:
        raise ValueError(f"{tokens.shape[1]} tokens cannot cover {width}x{height} pixels, which take {rows}x{columns}")
    return rearrange(tokens, "b (row column) (c ph pw) -> b c (row ph) (column pw)", row=rows, ph=2, pw=2)


def position_ids(image_index: int, rows: int, columns: int) -> Tensor:
    """(image index, row, column) of every token; index 0 is the target, references start at 1.

    Returns:
        float32, shape (1, rows * columns, 3). Rows and columns of every image start at 0.
    """
    index = torch.tensor([float(image_index)])
    grid = torch.cartesian_prod(index, torch.arange(rows, dtype=torch.float32), torch.arange(columns).float())
    return grid.unsqueeze(0)


def time_schedule(num_steps: int, target_tokens: int) -> list[float]:
    """Timesteps of an edit, num_steps + 1 numbers from 1 to 0.

    Evenly spaced timesteps are shifted towards noise, more for larger images: t -> e^mu / (e^mu + 1/t - 1), with mu
    linear in the number of target tokens through (256, 0.5) and (4096, 1.15). Reference tokens do not count.
    """
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = slope * target_tokens + (0.5 - slope * 256)
    times = torch.linspace(1, 0, num_steps + 1)
    return (math.exp(mu) / (math.exp(mu) + (1 / times - 1))).tolist()


def integrate(
    velocity: Callable[[Tensor, int], Tensor],
    latents: Tensor,
    times: Sequence[float],
    after_step: OnStep = lambda done, total: None,
) -> Tensor:
    """Integrate the velocity from times[0] to times[-1] with Euler steps.

    Args:
        velocity: function of (latents, step), the velocity at times[step].
        latents: packed target latents at times[0], shape (batch, length, channels).
        after_step: called with (steps done, total) after each step; an exception from it ends the integration.
    """
    total = len(times) - 1
    for step, (now, then) in enumerate(pairwise(times)):
        latents = latents + (then - now) * velocity(latents, step)
        after_step(step + 1, total)
    return latents
