"""Rotary positions and attention against the reference."""

from __future__ import annotations

import pytest
import torch

from kontext.attention import apply_rope, attention, rotary_table
from tests.kontext.golden import BFLOAT16, FLOAT32_FROM_TENSORS, relative_error, rotations, tensors


@pytest.mark.parametrize(("name", "axes_dim"), [("rope", (8, 12, 12)), ("rope_fullsize", (16, 56, 56))])
def test_rotary_table_is_the_references(name: str, axes_dim: tuple[int, ...]) -> None:
    golden = tensors(f"math/{name}")

    pe = rotary_table(golden["ids"], axes_dim, theta=10_000)

    assert relative_error(rotations(pe), golden["pe"]) < FLOAT32_FROM_TENSORS


def test_queries_are_turned_as_in_the_reference() -> None:
    golden, pe = tensors("math/attention"), rotary_table(tensors("math/rope")["ids"], (8, 12, 12), theta=10_000)

    assert relative_error(apply_rope(golden["q"], pe), golden["q_rope"]) < FLOAT32_FROM_TENSORS
    turned = apply_rope(golden["q"].bfloat16(), pe)
    assert turned.dtype == torch.bfloat16
    assert relative_error(turned, golden["q_rope_bf16"]) < 1e-4  # float32 arithmetic, one rounding


def test_attention_is_the_references() -> None:
    golden, pe = tensors("math/attention"), rotary_table(tensors("math/rope")["ids"], (8, 12, 12), theta=10_000)
    q, k, v = golden["q"], golden["k"], golden["v"]

    assert relative_error(attention(q, k, v, pe), golden["out"]) < FLOAT32_FROM_TENSORS
    assert relative_error(attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), pe), golden["out_bf16"]) < BFLOAT16


def test_attention_depends_on_distances_only() -> None:
    golden, ids = tensors("math/attention"), tensors("math/rope")["ids"]
    q, k, v = golden["q"], golden["k"], golden["v"]

    here = attention(q, k, v, rotary_table(ids, (8, 12, 12), theta=10_000))
    elsewhere = attention(q, k, v, rotary_table(ids + 7, (8, 12, 12), theta=10_000))

    assert relative_error(elsewhere, here) < FLOAT32_FROM_TENSORS
