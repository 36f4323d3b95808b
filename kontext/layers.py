"""The parts of the transformer: embedders, norms, modulation, double- and single-stream blocks.

Attributes carry the key names of the published checkpoints, so weights load as they are.
Source: FLUX.1 reference code, modules/layers.py; adaLN modulation after Peebles and Xie 2022 (DiT), parallel attention
and MLP after Dehghani et al. 2023.
"""

# mypy: disable-error-code="no-any-return"
# Calling an nn.Module is Any to the type checker; the annotations of `forward` say what it is.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from kontext.attention import attention
from kontext.config import TransformerConfig

FREQUENCY_CHANNELS = 256
NORM_EPSILON = 1e-6


def timestep_embedding(t: Tensor, dim: int = FREQUENCY_CHANNELS, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of 1000 * t, cosines first.

    Args:
        t: one number per sample, any shape (...). Its dtype counts: in bfloat16 the product with 1000 is rounded to
            steps of 4 near t = 0.9, and the model was trained to read these rounded values.
    Returns:
        Shape (..., dim), the dtype of t.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    frequencies = torch.exp(-math.log(max_period) * exponents).to(t.device)
    angles = (1000.0 * t)[..., None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(t.dtype)


class MLPEmbedder(nn.Module):
    """Brings a vector of numbers (time, guidance, pooled text) to the hidden size."""

    def __init__(self, in_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(nn.functional.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """Root-mean-square norm: in float32, rounded to the input's dtype, then scaled."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPSILON).to(x.dtype) * self.scale


class QKNorm(nn.Module):
    """Norms of queries and keys over the channels of a head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)

    def forward(self, qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, length, 3 * hidden) into normed q and k, and v, each (batch, heads, length, head_dim)."""
        q, k, v = split_heads(qkv, 3, num_heads)
        return self.query_norm(q), self.key_norm(k), v


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """From (batch, length, parts * hidden) to (parts, batch, heads, length, head_dim)."""
    return rearrange(x, "b l (parts h d) -> parts b h l d", parts=parts, h=num_heads)


class JoinedLinear(nn.Linear):
    """Several linear layers of the same input in one."""

    def part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Channels first to last of the output, and no others computed."""
        bias = None if self.bias is None else self.bias[first:last]
        return nn.functional.linear(x, self.weight[first:last], bias)


class SelfAttention(nn.Module):
    """Projections of one stream into the joint attention and out of it; the attention itself is the block's."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm(self.qkv(x), self.num_heads)


class Adjustment(NamedTuple):
    """What time, guidance and pooled text do to one residual branch; each of shape (..., batch, 1, hidden)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def at(self, step: int) -> Adjustment:
        """That of one step, where the first dimension is the steps.

        Copied, because compiled blocks are made for how their inputs lie in memory: it is the same for every step.
        """
        return Adjustment(*(part[step].clone(memory_format=torch.contiguous_format) for part in self))

    def enter(self, x: Tensor) -> Tensor:
        """The branch's input: normed, scaled, shifted."""
        return modulate(x, self.shift, self.scale)

    def leave(self, x: Tensor, branch: Tensor) -> Tensor:
        """The stream after the branch."""
        return x + self.gate * branch


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose scale and shift come from outside; it has no weights of its own."""
    return (1 + scale) * nn.functional.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON) + shift


class Modulation(nn.Module):
    """Makes the adjustments of `branches` residual branches from one vector."""

    def __init__(self, hidden_size: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.lin = nn.Linear(hidden_size, 3 * branches * hidden_size)

    def forward(self, vec: Tensor) -> list[Adjustment]:
        parts = self.lin(nn.functional.silu(vec))[..., None, :].chunk(3 * self.branches, dim=-1)
        return [Adjustment(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


class DoubleStreamBlock(nn.Module):
    """Text and image keep their own weights and meet in one attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.img_mod = Modulation(config.hidden_size, branches=2)
        self.img_attn = SelfAttention(config)
        self.img_mlp = _mlp(config)
        self.txt_mod = Modulation(config.hidden_size, branches=2)
        self.txt_attn = SelfAttention(config)
        self.txt_mlp = _mlp(config)

    def adjustments(self, vec: Tensor) -> list[Adjustment]:
        """What `forward` takes, from vectors of shape (..., batch, hidden)."""
        return [*self.img_mod(vec), *self.txt_mod(vec)]

    def forward(self, img: Tensor, txt: Tensor, adjustments: Sequence[Adjustment], pe: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            img: shape (batch, image length, hidden).
            txt: shape (batch, text length, hidden).
            adjustments: of this step, each of shape (batch, 1, hidden).
            pe: rotary table of text, then image.
        Returns:
            (img, txt) of the same shapes.
        """
        img_attend, img_think, txt_attend, txt_think = adjustments

        # Text comes before image wherever both are in one sequence.
        txt_qkv = self.txt_attn(txt_attend.enter(txt))
        img_qkv = self.img_attn(img_attend.enter(img))
        q, k, v = (torch.cat(both, dim=2) for both in zip(txt_qkv, img_qkv, strict=True))
        txt_heard, img_heard = torch.split(attention(q, k, v, pe), [txt.shape[1], img.shape[1]], dim=1)

        img = img_attend.leave(img, self.img_attn.proj(img_heard))
        img = img_think.leave(img, self.img_mlp(img_think.enter(img)))
        txt = txt_attend.leave(txt, self.txt_attn.proj(txt_heard))
        txt = txt_think.leave(txt, self.txt_mlp(txt_think.enter(txt)))
        return img, txt


def _mlp(config: TransformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.mlp_size),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.mlp_size, config.hidden_size),
    )


class SingleStreamBlock(nn.Module):
    """Text and image share weights; attention and MLP run side by side between two wide linear layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.linear1_sizes = [3 * config.hidden_size, config.mlp_size]  # q, k, v | MLP
        self.modulation = Modulation(config.hidden_size, branches=1)
        self.linear1 = JoinedLinear(config.hidden_size, sum(self.linear1_sizes))
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.norm = QKNorm(config.head_dim)

    def adjustments(self, vec: Tensor) -> list[Adjustment]:
        """What `forward` takes, from vectors of shape (..., batch, hidden)."""
        return self.modulation(vec)

    def forward(
        self, x: Tensor, adjustments: Sequence[Adjustment], pe: Tensor, rows: tuple[int, int] | None = None
    ) -> Tensor:
        """
        Args:
            x: text, then image, shape (batch, length, hidden).
            adjustments: the one of this step, of shape (batch, 1, hidden).
            pe: rotary table of the whole sequence.
            rows: (first, last) of the tokens whose result is wanted, None for all.
        Returns:
            Shape (batch, number of rows, hidden).
        """
        (adjustment,) = adjustments
        entered = adjustment.enter(x)
        if rows is None:
            qkv, mlp = torch.split(self.linear1(entered), self.linear1_sizes, dim=-1)
            q, k, v = self.norm(qkv, self.num_heads)
            heard = attention(q, k, v, pe)
        else:
            # All tokens are heard, but only these listen and think.
            first, last = rows
            mlp = self.linear1.part(entered[:, first:last], self.linear1_sizes[0], sum(self.linear1_sizes))
            heard = self._listen(entered, pe, first, last)
            x = x[:, first:last]
        thought = nn.functional.gelu(mlp, approximate="tanh")
        return adjustment.leave(x, self.linear2(torch.cat((heard, thought), dim=-1)))

    def _listen(self, entered: Tensor, pe: Tensor, first: int, last: int) -> Tensor:
        """Attention of some rows to all."""
        hidden = entered.shape[-1]
        (q,) = split_heads(self.linear1.part(entered[:, first:last], 0, hidden), 1, self.num_heads)
        k, v = split_heads(self.linear1.part(entered, hidden, 3 * hidden), 2, self.num_heads)
        return attention(self.norm.query_norm(q), self.norm.key_norm(k), v, pe, query_pe=pe[:, :, first:last])


class LastLayer(nn.Module):
    """From the hidden size to the velocity of a token's 2x2 latents."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.linear = nn.Linear(hidden_size, out_channels)

    def adjustment(self, vec: Tensor) -> Tensor:
        """(shift, scale) for `forward`, from vectors of shape (..., batch, hidden): (..., batch, 2, hidden)."""
        return self.adaLN_modulation(vec).unflatten(-1, (2, -1))

    def forward(self, x: Tensor, adjustment: Tensor) -> Tensor:
        """
        Args:
            x: shape (batch, length, hidden).
            adjustment: (shift, scale) of this step, shape (batch, 2, hidden).
        """
        shift, scale = adjustment.chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))
