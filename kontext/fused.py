"""Steps of a block in fewer passes over memory, as operators for blocks that are compiled for CUDA.

Inductor leaves products to cuBLAS and writes what follows as another pass. cuBLAS itself can apply GELU to a product
and add one product to another while the values are still in registers, and a kernel of our own norms and turns queries
and keys. Each operator has its plain equivalent, which it is on every other device.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from kontext.attention import apply_rope

HAS_TRITON = find_spec("triton") is not None


def can_fuse(x: Tensor) -> bool:
    """Check for bfloat16 values in a block that is compiled for CUDA and does not learn."""
    is_compiled = torch.compiler.is_compiling() and not torch.is_grad_enabled()
    return is_compiled and x.is_cuda and x.dtype == torch.bfloat16 and HAS_TRITON


def can_turn(qkv: Tensor, heads: int) -> bool:
    """Check for joint projections too whose heads our kernel holds: a power of two of channels."""
    head_dim = qkv.shape[-1] // (3 * heads)
    return can_fuse(qkv) and head_dim & (head_dim - 1) == 0


def can_fuse_into(linear: nn.Module, x: Tensor) -> bool:
    """Check for a plain layer too, whose product cuBLAS computes."""
    return can_fuse(x) and isinstance(linear, nn.Linear) and linear.bias is not None


# Custom operators, because Inductor would take them apart again.
@torch.library.custom_op("kontext::turn", mutates_args=())
def turn(streams: Sequence[Tensor], scales: Sequence[Tensor], pe: Tensor, heads: int, epsilon: float) -> list[Tensor]:
    """Queries, keys and values of all tokens: normed, turned, and one stream behind the other.

    Args:
        streams: joint projections, shape (batch, tokens, 3 * hidden).
        scales: of the RMS norms of queries and keys, for one stream after the other, shape (head_dim,).
        pe: rotary table of the tokens of all streams.
    Returns:
        q, k and, if there are several streams to join, v; contiguous, shape (batch, tokens, heads, head_dim).
    """
    parts = 3 if len(streams) > 1 else 2
    out = [streams[0].new_empty(_joint_shape(streams, heads)) for _ in range(parts)]
    first = 0
    for i, stream in enumerate(streams):
        _turn_stream(stream, scales[2 * i : 2 * i + 2], pe, out, first, epsilon)
        first += stream.shape[1]
    return out


@turn.register_fake
def _(streams: Sequence[Tensor], scales: Sequence[Tensor], pe: Tensor, heads: int, epsilon: float) -> list[Tensor]:
    return [streams[0].new_empty(_joint_shape(streams, heads)) for _ in range(3 if len(streams) > 1 else 2)]


def _joint_shape(streams: Sequence[Tensor], heads: int) -> tuple[int, ...]:
    batch, _, width = streams[0].shape
    return batch, sum(stream.shape[1] for stream in streams), heads, width // (3 * heads)


def _turn_stream(
    stream: Tensor, scales: Sequence[Tensor], pe: Tensor, out: Sequence[Tensor], first: int, epsilon: float
) -> None:
    if stream.is_cuda:
        from kontext.triton_kernels import norm_and_turn  # there is no Triton where there is no CUDA

        norm_and_turn(stream, scales, pe, out, first, epsilon)
        return
    rows = slice(first, first + stream.shape[1])
    parts = stream.view(*stream.shape[:2], 3, -1, out[0].shape[-1]).unbind(2)
    for x, scale, target in zip(parts, scales, out, strict=False):
        normed = nn.functional.rms_norm(x.float(), x.shape[-1:], eps=epsilon).to(x.dtype) * scale
        target[:, rows] = apply_rope(normed, pe[:, rows])
    if len(out) > 2:
        out[2][:, rows] = parts[2]


@torch.library.custom_op("kontext::modulated", mutates_args=())
def modulated(x: Tensor, shift: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Layer norm of tokens, then scale and shift.

    Args:
        x: shape (batch, tokens, hidden).
        shift, scale: shape (batch, 1, hidden).
    """
    if x.is_cuda:
        from kontext.triton_kernels import add_and_modulate

        return add_and_modulate(x.contiguous(), None, shift.contiguous(), scale.contiguous(), epsilon)[1]
    return (1 + scale) * nn.functional.layer_norm(x, x.shape[-1:], eps=epsilon) + shift


@modulated.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("kontext::add_and_modulate", mutates_args=())
def add_modulated(
    x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(x + gate * y, and of that the layer norm, scaled and shifted).

    Args:
        x, y: shape (batch, tokens, hidden).
        gate, shift, scale: shape (batch, 1, hidden).
    """
    if x.is_cuda:
        from kontext.triton_kernels import add_and_modulate

        added = (y.contiguous(), gate.contiguous())
        return add_and_modulate(x.contiguous(), added, shift.contiguous(), scale.contiguous(), epsilon)
    total = x + gate * y
    return total, (1 + scale) * nn.functional.layer_norm(total, x.shape[-1:], eps=epsilon) + shift


@add_modulated.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    contiguous = torch.contiguous_format
    return torch.empty_like(x, memory_format=contiguous), torch.empty_like(x, memory_format=contiguous)


@torch.library.custom_op("kontext::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU (tanh) of a linear layer; on CUDA of the float32 sums, before they are rounded.

    Args:
        x: shape (..., channels).
        weight: shape (outputs, channels); rows may be a part of a larger matrix.
        bias: shape (outputs,).
    Returns:
        Shape (..., outputs), contiguous.
    """
    if not x.is_cuda:
        return nn.functional.gelu(nn.functional.linear(x, weight, bias), approximate="tanh")
    y = torch.ops.aten._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return y.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


@torch.library.custom_op("kontext::linear_of_two", mutates_args=())
def linear_of_two(one: Tensor, other: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer of two tensors side by side, which are never copied together: one product is added to the other.

    Args:
        one, other: shapes (..., channels of one) and (..., channels of the other).
        weight: shape (outputs, channels of both).
        bias: shape (outputs,).
    Returns:
        Shape (..., outputs), contiguous. The first sum is rounded once more than that of one product.
    """
    width = one.shape[-1]
    y = nn.functional.linear(other.flatten(0, -2), weight[:, width:], bias)
    return y.addmm_(one.flatten(0, -2), weight[:, :width].t()).view(*one.shape[:-1], -1)


@linear_of_two.register_fake
def _(one: Tensor, other: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return one.new_empty(*one.shape[:-1], len(weight))
