"""Rotary position embedding and attention, as pure functions.

Neighbouring channels (0, 1), (2, 3), ... of every query and key are read as complex numbers. Rotary embedding
multiplies them by exp(i * position * frequency). The product of a query and a key then depends on their distance only
(Su et al. 2021, RoFormer, equation 34). A token has three positions, (image index, row, column), each with its own
channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kontext.matmul import onednn_multiplies


def rope(positions: Tensor, dim: int, theta: int) -> Tensor:
    """Rotations for one axis of positions.

    Args:
        positions: float32, any shape (...).
        dim: number of channels rotated along this axis, even.
        theta: base of the frequencies theta ** (-2k / dim).
    Returns:
        (cos, sin) of every angle, float32, shape (..., dim / 2, 2).
    """
    exponents = torch.arange(0, dim, 2, dtype=positions.dtype, device=positions.device) / dim
    angles = positions[..., None] * (1.0 / theta**exponents)
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def rotary_table(ids: Tensor, axes_dim: tuple[int, ...], theta: int) -> Tensor:
    """Rotations for tokens whose position has several axes.

    Args:
        ids: position of every token, float32, shape (batch, length, len(axes_dim)).
        axes_dim: channels per axis, together the size of a head.
    Returns:
        (cos, sin) per channel pair, float32, shape (batch, length, 1, head_dim / 2, 2); the 1 is for the heads.
    """
    axes = [rope(ids[..., axis], dim, theta) for axis, dim in enumerate(axes_dim)]
    return torch.cat(axes, dim=-2).unsqueeze(2)


def apply_rope(x: Tensor, pe: Tensor) -> Tensor:
    """Rotate queries or keys by their positions in float32, then round to their dtype.

    Args:
        x: shape (batch, length, heads, head_dim).
        pe: rotary table of the tokens, from `rotary_table`.
    """
    if torch.compiler.is_compiling():
        return _apply_rope_in_reals(x, pe)
    # One complex product instead of four real ones and a shuffle: the same bits, 4 to 8 times faster on a CPU.
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.view_as_complex(pe)).flatten(-2).type_as(x)


def _apply_rope_in_reals(x: Tensor, pe: Tensor) -> Tensor:
    """Same rotation in real numbers, for the compiler, which does not support complex ones.

    Each channel takes its neighbour's value by index, with the sign of the sine changed in every first one: so it is
    one pass. Pairs put together by `stack` would be written in float32 first.
    """
    cos, sin = (part[..., None].expand(*part.shape, 2).flatten(-2) for part in pe.unbind(-1))
    sign = 2.0 * (torch.arange(x.shape[-1], device=x.device) % 2) - 1  # -1, 1, -1, 1, ...
    wide = x.float()
    neighbours = wide.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return (wide * cos + neighbours * (sin * sign)).type_as(x)


def attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, query_pe: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention between positioned tokens.

    Args:
        q, k, v: shape (batch, length, heads, head_dim), the layout in which products give and take tokens; there may be
            fewer queries than keys.
        pe: rotary table of the keys, from `rotary_table`.
        query_pe: rotary table of the queries; None if queries and keys are of the same tokens.
    Returns:
        Shape (batch, length of q, heads * head_dim).
    """
    return attention_of_turned(apply_rope(q, pe if query_pe is None else query_pe), apply_rope(k, pe), v)


def attention_of_turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As `attention`, of queries and keys that are turned already."""
    by_head = [_widened(x).transpose(1, 2) for x in (q, k, v)]
    x = nn.functional.scaled_dot_product_attention(by_head[0], by_head[1], by_head[2])
    return x.type_as(v).transpose(1, 2).flatten(2)


def _widened(x: Tensor) -> Tensor:
    """Convert to float32 while oneDNN multiplies: its float32 kernel takes half the time of the bfloat16 kernel."""
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not onednn_multiplies():
        return x
    return x.float()
