"""Rotary positions and attention against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kontext.attention import _apply_rope_in_reals, apply_rope, attention, rotary_table
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_TENSORS, relative_error, rotations, tensors


@pytest.mark.parametrize(("name", "axes_dim"), [("rope", (8, 12, 12)), ("rope_fullsize", (16, 56, 56))])
def test_rotary_table_is_the_references(name: str, axes_dim: tuple[int, ...]) -> None:
    golden = tensors(f"math/{name}")

    pe = rotary_table(golden["ids"], axes_dim, theta=10_000)

    assert relative_error(rotations(pe), golden["pe"]) < FLOAT32_FROM_TENSORS


def by_tokens(golden: dict[str, Tensor], *names: str) -> list[Tensor]:
    """Golden tensors, whose heads come before their tokens, in the layout of ours."""
    return [golden[name].transpose(1, 2) for name in names]


def test_queries_are_turned_as_in_the_reference() -> None:
    golden, pe = tensors("math/attention"), rotary_table(tensors("math/rope")["ids"], (8, 12, 12), theta=10_000)

    q, expected, expected_bf16 = by_tokens(golden, "q", "q_rope", "q_rope_bf16")
    assert relative_error(apply_rope(q, pe), expected) < FLOAT32_FROM_TENSORS
    turned = apply_rope(q.bfloat16(), pe)
    assert turned.dtype == torch.bfloat16
    assert relative_error(turned, expected_bf16) < 1e-4  # float32 arithmetic, one rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compilers_rotation_has_the_bits_of_the_other(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    pe = rotary_table(tensors("math/rope")["ids"], (8, 12, 12), theta=10_000)
    x = torch.randn(1, pe.shape[1], 3, 32, generator=draw).to(dtype)

    assert torch.equal(_apply_rope_in_reals(x, pe), apply_rope(x, pe))


def test_attention_is_the_references() -> None:
    golden, pe = tensors("math/attention"), rotary_table(tensors("math/rope")["ids"], (8, 12, 12), theta=10_000)
    q, k, v = by_tokens(golden, "q", "k", "v")

    assert relative_error(attention(q, k, v, pe), golden["out"]) < FLOAT32_FROM_TENSORS
    assert relative_error(attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), pe), golden["out_bf16"]) < BFLOAT16


def test_attention_depends_on_distances_only() -> None:
    golden, ids = tensors("math/attention"), tensors("math/rope")["ids"]
    q, k, v = by_tokens(golden, "q", "k", "v")

    here = attention(q, k, v, rotary_table(ids, (8, 12, 12), theta=10_000))
    elsewhere = attention(q, k, v, rotary_table(ids + 7, (8, 12, 12), theta=10_000))

    assert relative_error(elsewhere, here) < FLOAT32_FROM_TENSORS
