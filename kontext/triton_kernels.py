"""Kernels of our own for CUDA, in Triton: from joint projections to normed, turned queries and keys in one pass.

Inductor reads and writes the projections three times for that: norm of the queries, norm of the keys, rotation.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc"
# Triton compiles the annotated functions; to the type checker they are Python without types.

from __future__ import annotations

from collections.abc import Sequence

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
