"""Kernels of our own for CUDA, in Triton: norms with what comes before and after them in one pass over memory.

Inductor reads the projections three times for normed and turned queries and keys, and a row of hidden channels twice
for a layer norm, since such a row is longer than what it keeps in registers.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
# Triton compiles the annotated functions; to the type checker they are Python without types.

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8
QUERIES, VALUES = tl.constexpr(0), tl.constexpr(2)  # parts of a joint projection; 1 are the keys


@triton.jit
def _norm_and_turn(
    qkv,
    q,
    k,
    v,
    query_scale,
    key_scale,
    pe,
    first_row,
    qkv_batch_stride,
    qkv_row_stride,
    out_batch_stride,
    pe_batch_stride,
    epsilon,
    num_heads: tl.constexpr,
    padded_heads: tl.constexpr,
    head_dim: tl.constexpr,
):
    """One part of one token, with all its heads."""
    token, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    hidden: tl.constexpr = num_heads * head_dim
    heads, channels = tl.arange(0, padded_heads), tl.arange(0, head_dim)
    inside = heads[:, None] * head_dim + channels[None, :]
    is_head = (heads < num_heads)[:, None]
    x = tl.load(
        qkv + batch * qkv_batch_stride + token.to(tl.int64) * qkv_row_stride + part * hidden + inside,
        mask=is_head,
        other=0.0,
    )
    row = (first_row + token).to(tl.int64)
    target = batch * out_batch_stride + row * hidden + inside
    if part == VALUES:
        tl.store(v + target, x, mask=is_head)
        return
    is_query = part == QUERIES
    wide = x.to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, axis=1) / head_dim + epsilon)
    scale = tl.load((query_scale if is_query else key_scale) + channels)
    # Rounded after the norm and after the scale, as in RMSNorm.
    normed = (wide * root[:, None]).to(x.dtype).to(tl.float32) * scale[None, :].to(tl.float32)
    normed = normed.to(x.dtype).to(tl.float32)
    real, imaginary = tl.split(tl.reshape(normed, (padded_heads, head_dim // 2, 2)))
    angle = pe + batch * pe_batch_stride + row * head_dim + 2 * tl.arange(0, head_dim // 2)
    cos, sin = tl.load(angle)[None, :], tl.load(angle + 1)[None, :]
    turned = tl.join(real * cos - imaginary * sin, real * sin + imaginary * cos)
    turned = tl.reshape(turned, (padded_heads, head_dim)).to(x.dtype)
    tl.store((q if is_query else k) + target, turned, mask=is_head)


def norm_and_turn(
    qkv: Tensor, scales: Sequence[Tensor], pe: Tensor, out: Sequence[Tensor], first_row: int, epsilon: float
) -> None:
    """Write a stream's queries, keys and, if there is place for them, values to those of all tokens.

    Args:
        qkv: shape (batch, tokens, 3 * hidden), channels side by side.
        scales: of the RMS norms of queries and keys, shape (head_dim,).
        pe: rotary table of all tokens, float32, shape (batch or 1, all tokens, 1, head_dim / 2, 2), contiguous but for
            the first dimension.
        out: q, k and perhaps v, contiguous, shape (batch, all tokens, heads, head_dim).
        first_row: of the stream's tokens among all.
        epsilon: added to the mean square.
    """
    batch, tokens, _ = qkv.shape
    q, k, *values = out
    _, _, heads, head_dim = q.shape
    _norm_and_turn[(tokens, len(out), batch)](
        qkv,
        q,
        k,
        *(values or [q]),  # without place for values no program writes there
        *scales,
        pe,
        first_row,
        qkv.stride(0),
        qkv.stride(1),
        q.stride(0),
        0 if len(pe) == 1 else pe.stride(0),
        epsilon,
        num_heads=heads,
        padded_heads=triton.next_power_of_2(heads),
        head_dim=head_dim,
        num_warps=WARPS,
    )


@triton.jit
def _add_and_modulate(
    x,
    y,
    gate,
    shift,
    scale,
    total,
    out,
    rows,
    epsilon,
    width: tl.constexpr,
    padded_width: tl.constexpr,
    adds: tl.constexpr,
):
    """One token."""
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, padded_width)
    is_channel = channels < width
    place = (batch * rows + row) * width + channels
    per_batch = batch * width + channels
    value = tl.load(x + place, mask=is_channel, other=0.0)
    dtype = value.dtype
    value = value.to(tl.float32)
    if adds:
        added = tl.load(y + place, mask=is_channel, other=0.0).to(tl.float32)
        value += tl.load(gate + per_batch, mask=is_channel, other=0.0).to(tl.float32) * added
        tl.store(total + place, value.to(dtype), mask=is_channel)
        value = value.to(dtype).to(tl.float32)
    centred = tl.where(is_channel, value - tl.sum(value, axis=0) / width, 0.0)
    root = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + epsilon)
    factor = 1 + tl.load(scale + per_batch, mask=is_channel, other=0.0).to(tl.float32)
    offset = tl.load(shift + per_batch, mask=is_channel, other=0.0).to(tl.float32)
    tl.store(out + place, (centred * root * factor + offset).to(dtype), mask=is_channel)


def add_and_modulate(
    x: Tensor, added: tuple[Tensor, Tensor] | None, shift: Tensor, scale: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Add a gated branch to x if there is one, then layer norm, scale and shift.

    Args:
        x: shape (batch, tokens, hidden), contiguous.
        added: the branch, of the shape of x, and its gate, shape (batch, 1, hidden); both contiguous.
        shift, scale: shape (batch, 1, hidden), contiguous.
    Returns:
        (the sum, or x itself; the modulated norm).
    """
    batch, tokens, width = x.shape
    y, gate = added or (x, shift)
    total, out = torch.empty_like(x) if added else x, torch.empty_like(x)
    _add_and_modulate[(tokens, batch)](
        x,
        y,
        gate,
        shift,
        scale,
        total,
        out,
        tokens,
        epsilon,
        width=width,
        padded_width=triton.next_power_of_2(width),
        adds=added is not None,
        num_warps=WARPS,
    )
    return total, out
