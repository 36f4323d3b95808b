"""The parts of the transformer: embedders, norms, modulation, double- and single-stream blocks.

Attributes carry the key names of the published checkpoints, so weights load as they are.
Source: FLUX.1 reference code, modules/layers.py; adaLN modulation after Peebles and Xie 2022 (DiT), parallel attention
and MLP after Dehghani et al. 2023.
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from kontext.attention import attention, attention_of_turned
from kontext.config import TransformerConfig
from kontext.fused import add_modulated, can_fuse_into, can_turn, linear_gelu, linear_of_two, modulated, turn

FREQUENCY_CHANNELS = 256
NORM_EPSILON = 1e-6


def timestep_embedding(t: Tensor, dim: int = FREQUENCY_CHANNELS, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of 1000 * t, cosines first.

    Args:
        t: one number per sample, any shape (...). Its dtype matters: in bfloat16 the product with 1000 is rounded to
            multiples of 4 near t = 0.9, and the model was trained on these rounded values.
    Returns:
        Shape (..., dim), the dtype of t.
    """
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32) / half
    # Computed on the CPU for the reference's bits; a training has no time to wait for the copy.
    frequencies = torch.exp(-math.log(max_period) * exponents).to(t.device, non_blocking=t.is_cuda)
    angles = (1000.0 * t)[..., None].float() * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(t.dtype)


Adapter = tuple[Tensor, Tensor]
"""A LoRA layer: down, shape (rank, columns of the layer), and up, shape (rows of the layer, rank)."""


def adapted(linear: nn.Module, x: Tensor, adapter: Adapter | None) -> Tensor:
    """Output of a linear layer with the LoRA layer round it."""
    y = linear(x)
    if adapter is None:
        return y
    down, up = adapter
    return y + nn.functional.linear(nn.functional.linear(x, down), up)


def adapted_part(linear: JoinedLinear, x: Tensor, first: int, last: int, adapter: Adapter | None) -> Tensor:
    """Output channels first to last (exclusive) of a joined layer with the LoRA layer round it."""
    y = linear.part(x, first, last)
    if adapter is None:
        return y
    down, up = adapter
    return y + nn.functional.linear(nn.functional.linear(x, down), up[first:last])


class MLPEmbedder(nn.Module):
    """MLP from a vector (timestep, guidance, pooled text) to the hidden size."""

    def __init__(self, in_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, adapters: tuple[Adapter | None, Adapter | None] = (None, None)) -> Tensor:
        return adapted(self.out_layer, nn.functional.silu(adapted(self.in_layer, x, adapters[0])), adapters[1])


class RMSNorm(nn.Module):
    """Root-mean-square norm: in float32, rounded to the input's dtype, then scaled."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=NORM_EPSILON).to(x.dtype) * self.scale


class QKNorm(nn.Module):
    """RMS norms of queries and keys over the channels of a head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(head_dim)
        self.key_norm = RMSNorm(head_dim)

    def forward(self, qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Split (batch, length, 3 * hidden) into normed q and k, and v, each (batch, length, heads, head_dim)."""
        q, k, v = split_heads(qkv, 3, num_heads)
        return self.query_norm(q), self.key_norm(k), v


def scales_of(*norms: QKNorm) -> list[Tensor]:
    return [scale for norm in norms for scale in (norm.query_norm.scale, norm.key_norm.scale)]


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """Reshape (batch, length, parts * hidden) to (parts, batch, length, heads, head_dim)."""
    return rearrange(x, "b l (parts h d) -> parts b l h d", parts=parts, h=num_heads)


class JoinedLinear(nn.Linear):
    """Several linear layers of the same input, joined in one."""

    def part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Compute only the output channels first to last (exclusive)."""
        bias = None if self.bias is None else self.bias[first:last]
        return nn.functional.linear(x, self.weight[first:last], bias)


class SelfAttention(nn.Module):
    """Projections of one stream into and out of the joint attention, which the block computes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, adapter: Adapter | None = None) -> Tensor:
        """Queries, keys and values side by side, not normed yet, (batch, length, 3 * hidden)."""
        return adapted(self.qkv, x, adapter)


class ModulationOut(NamedTuple):
    """Shift, scale and gate of one residual branch, each of shape (..., batch, 1, hidden)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def at(self, step: int) -> ModulationOut:
        """Modulation of one step; the first dimension counts the steps.

        Copied, because a compiled block is specialised to the memory layout of its inputs: copies have the same layout
        at every step.
        """
        return ModulationOut(*(part[step].clone(memory_format=torch.contiguous_format) for part in self))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without weights of its own, then the modulation's scale and shift."""
    return (1 + scale) * nn.functional.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON) + shift


def modulate_for(linear: nn.Module, x: Tensor, mod: ModulationOut) -> Tensor:
    """`modulate` for a layer. One in float8 quantises what it reads, which the compiler does in the same pass."""
    if can_fuse_into(linear, x):
        return modulated(x, mod.shift, mod.scale, NORM_EPSILON)
    return modulate(x, mod.shift, mod.scale)


def add_and_modulate_for(
    linear: nn.Module, x: Tensor, branch: Tensor, gate: Tensor, mod: ModulationOut
) -> tuple[Tensor, Tensor]:
    """(x with a gated branch added to it, and what the layer reads of that)."""
    if can_fuse_into(linear, x):
        return add_modulated(x, branch, gate, mod.shift, mod.scale, NORM_EPSILON)
    x = x + gate * branch
    return x, modulate(x, mod.shift, mod.scale)


class Modulation(nn.Module):
    """Linear layer from one vector to the modulation of `branches` residual branches."""

    def __init__(self, hidden_size: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.lin = nn.Linear(hidden_size, 3 * branches * hidden_size)

    def forward(self, vec: Tensor, adapter: Adapter | None = None) -> list[ModulationOut]:
        parts = adapted(self.lin, nn.functional.silu(vec), adapter)[..., None, :].chunk(3 * self.branches, dim=-1)
        return [ModulationOut(*parts[i : i + 3]) for i in range(0, len(parts), 3)]


class DoubleStreamBlock(nn.Module):
    """Block with separate weights for text and image tokens and one joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.img_mod = Modulation(config.hidden_size, branches=2)
        self.img_attn = SelfAttention(config)
        self.img_mlp = _mlp(config)
        self.txt_mod = Modulation(config.hidden_size, branches=2)
        self.txt_attn = SelfAttention(config)
        self.txt_mlp = _mlp(config)

    def modulation_outs(self, vec: Tensor, adapters: Mapping[str, Adapter] | None = None) -> list[ModulationOut]:
        """Modulation for `forward`, from `vec` of shape (..., batch, hidden)."""
        given = adapters or {}
        return [*self.img_mod(vec, given.get("img_mod.lin")), *self.txt_mod(vec, given.get("txt_mod.lin"))]

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        mods: Sequence[ModulationOut],
        pe: Tensor,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            img: shape (batch, image length, hidden).
            txt: shape (batch, text length, hidden).
            mods: modulation of this step (attention and MLP of img, then of txt), each of shape (batch, 1, hidden).
            pe: rotary table of text, then image.
            adapters: LoRA layers by the names of the linear layers.
        Returns:
            (img, txt) of the same shapes.
        """
        img_mod1, img_mod2, txt_mod1, txt_mod2 = mods

        # Text comes before image wherever both are in one sequence.
        lora = adapters or {}
        txt_qkv = self.txt_attn(modulate_for(self.txt_attn.qkv, txt, txt_mod1), lora.get("txt_attn.qkv"))
        img_qkv = self.img_attn(modulate_for(self.img_attn.qkv, img, img_mod1), lora.get("img_attn.qkv"))
        txt_attn, img_attn = torch.split(self._attention(txt_qkv, img_qkv, pe), [txt.shape[1], img.shape[1]], dim=1)

        img_attn = adapted(self.img_attn.proj, img_attn, lora.get("img_attn.proj"))
        img, x = add_and_modulate_for(self.img_mlp[0], img, img_attn, img_mod1.gate, img_mod2)
        img = img + img_mod2.gate * _run_mlp(self.img_mlp, x, (lora.get("img_mlp.0"), lora.get("img_mlp.2")))
        txt_attn = adapted(self.txt_attn.proj, txt_attn, lora.get("txt_attn.proj"))
        txt, x = add_and_modulate_for(self.txt_mlp[0], txt, txt_attn, txt_mod1.gate, txt_mod2)
        txt = txt + txt_mod2.gate * _run_mlp(self.txt_mlp, x, (lora.get("txt_mlp.0"), lora.get("txt_mlp.2")))
        return img, txt

    def _attention(self, txt_qkv: Tensor, img_qkv: Tensor, pe: Tensor) -> Tensor:
        norms, heads = (self.txt_attn.norm, self.img_attn.norm), self.img_attn.num_heads
        if can_turn(img_qkv, heads):
            return attention_of_turned(*turn([txt_qkv, img_qkv], scales_of(*norms), pe, heads, NORM_EPSILON))
        streams = (norm(qkv, heads) for norm, qkv in zip(norms, (txt_qkv, img_qkv), strict=True))
        q, k, v = (torch.cat(both, dim=1) for both in zip(*streams, strict=True))
        return attention(q, k, v, pe)


def _mlp(config: TransformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.mlp_size),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.mlp_size, config.hidden_size),
    )


def _run_mlp(mlp: nn.Sequential, x: Tensor, adapters: tuple[Adapter | None, Adapter | None]) -> Tensor:
    first, activation, second = mlp
    if adapters[0] is None and can_fuse_into(first, x):
        return adapted(second, linear_gelu(x, first.weight, first.bias), adapters[1])
    if adapters[0] is None and adapters[1] is None:
        return mlp(x)  # as one module, so that hooks on it are called
    return adapted(second, activation(adapted(first, x, adapters[0])), adapters[1])


class SingleStreamBlock(nn.Module):
    """Block with shared weights for text and image tokens; attention and MLP run in parallel."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.linear1_sizes = [3 * config.hidden_size, config.mlp_size]  # q, k, v | MLP
        self.modulation = Modulation(config.hidden_size, branches=1)
        self.linear1 = JoinedLinear(config.hidden_size, sum(self.linear1_sizes))
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.norm = QKNorm(config.head_dim)

    def modulation_outs(self, vec: Tensor, adapters: Mapping[str, Adapter] | None = None) -> list[ModulationOut]:
        """Modulation for `forward`, from `vec` of shape (..., batch, hidden)."""
        return self.modulation(vec, (adapters or {}).get("modulation.lin"))

    def forward(
        self,
        x: Tensor,
        mods: Sequence[ModulationOut],
        pe: Tensor,
        rows: tuple[int, int] | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> Tensor:
        """
        Args:
            x: text, then image, shape (batch, length, hidden).
            mods: the one modulation of this step, of shape (batch, 1, hidden).
            pe: rotary table of the whole sequence.
            rows: (first, last) of the tokens to return, None for all.
            adapters: LoRA layers by the names of the linear layers.
        Returns:
            Shape (batch, number of rows, hidden).
        """
        (mod,) = mods
        x_mod = modulate_for(self.linear1, x, mod)
        lora = adapters or {}
        if lora.get("linear1") is None and lora.get("linear2") is None and can_fuse_into(self.linear1, x):
            return self._fused(x, x_mod, mod.gate, pe, rows)
        if rows is None:
            qkv, mlp = torch.split(adapted(self.linear1, x_mod, lora.get("linear1")), self.linear1_sizes, dim=-1)
            attn = self._attention(qkv, pe)
        else:
            # Keys and values of all tokens, but queries and MLP of these rows only.
            first, last = rows
            sizes = self.linear1_sizes
            mlp = adapted_part(self.linear1, x_mod[:, first:last], sizes[0], sum(sizes), lora.get("linear1"))
            attn = self._attention_of_rows(x_mod, pe, first, last, lora.get("linear1"))
            x = x[:, first:last]
        mlp = nn.functional.gelu(mlp, approximate="tanh")
        return x + mod.gate * adapted(self.linear2, torch.cat((attn, mlp), dim=-1), lora.get("linear2"))

    def _fused(self, x: Tensor, x_mod: Tensor, gate: Tensor, pe: Tensor, rows: tuple[int, int] | None) -> Tensor:
        """As `forward` without LoRA, with the MLP's activations written once and never copied."""
        width = self.linear1_sizes[0]
        if rows is None:
            attn = self._attention(self.linear1.part(x_mod, 0, width), pe)
        else:
            attn = self._attention_of_rows(x_mod, pe, *rows, None)
            x, x_mod = x[:, slice(*rows)], x_mod[:, slice(*rows)]
        mlp = linear_gelu(x_mod, self.linear1.weight[width:], self.linear1.bias[width:])
        return x + gate * linear_of_two(attn, mlp, self.linear2.weight, self.linear2.bias)

    def _attention(self, qkv: Tensor, pe: Tensor) -> Tensor:
        if can_turn(qkv, self.num_heads):
            q, k = turn([qkv], scales_of(self.norm), pe, self.num_heads, NORM_EPSILON)
            return attention_of_turned(q, k, split_heads(qkv, 3, self.num_heads)[2])
        q, k, v = self.norm(qkv, self.num_heads)
        return attention(q, k, v, pe)

    def _attention_of_rows(self, x_mod: Tensor, pe: Tensor, first: int, last: int, adapter: Adapter | None) -> Tensor:
        """Attention with the queries of rows first to last and the keys and values of all rows."""
        hidden = x_mod.shape[-1]
        (q,) = split_heads(adapted_part(self.linear1, x_mod[:, first:last], 0, hidden, adapter), 1, self.num_heads)
        k, v = split_heads(adapted_part(self.linear1, x_mod, hidden, 3 * hidden, adapter), 2, self.num_heads)
        return attention(self.norm.query_norm(q), self.norm.key_norm(k), v, pe, query_pe=pe[:, first:last])


class LastLayer(nn.Module):
    """Projection from the hidden size to the velocity of a token's 2x2 latents."""

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))
        self.linear = nn.Linear(hidden_size, out_channels)

    def modulation(self, vec: Tensor, adapter: Adapter | None = None) -> Tensor:
        """(shift, scale) for `forward`, from `vec` of shape (..., batch, hidden): (..., batch, 2, hidden)."""
        activation, linear = self.adaLN_modulation
        mod = adapted(linear, activation(vec), adapter)
        return mod.reshape(*mod.shape[:-1], 2, -1)

    def forward(self, x: Tensor, mod: Tensor, adapter: Adapter | None = None) -> Tensor:
        """
        Args:
            x: shape (batch, length, hidden).
            mod: (shift, scale) of this step, shape (batch, 2, hidden).
        """
        shift, scale = mod.chunk(2, dim=1)
        return adapted(self.linear, modulate(x, shift, scale), adapter)
