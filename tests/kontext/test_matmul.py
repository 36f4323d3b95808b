"""The choice of the library that multiplies float32 matrices on a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kontext import matmul
from kontext.attention import attention, rotary_table
from kontext.matmul import choose_products, onednn_multiplies, using_products
from kontext.sampling import position_ids


@pytest.fixture(autouse=True)
def not_chosen_yet() -> Iterator[None]:
    choose_products.cache_clear()
    yield
    choose_products.cache_clear()


def measured(monkeypatch: pytest.MonkeyPatch, *, default: float, onednn: float, error: float) -> None:
    seconds = {"default": default, "onednn": onednn}
    monkeypatch.setattr(matmul, "_measure", lambda name: seconds[name])
    monkeypatch.setattr(matmul, "_error", lambda name: error)


def test_onednn_is_taken_where_it_is_faster_and_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, default=0.004, onednn=0.002, error=4e-7)

    assert choose_products() == "onednn"


def test_a_library_that_rounds_to_bfloat16_is_left_alone_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, default=0.004, onednn=0.0005, error=2e-3)

    assert choose_products() == "default"


def test_a_gain_that_noise_could_make_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, default=0.0022, onednn=0.002, error=4e-7)

    assert choose_products() == "default"


def test_a_second_model_of_the_process_gets_the_library_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, default=0.004, onednn=0.002, error=4e-7)
    first = choose_products()
    measured(monkeypatch, default=0.004, onednn=0.004, error=4e-7)  # a neighbour took a core meanwhile

    assert choose_products() == first


def test_what_is_chosen_here_is_as_exact_as_float32() -> None:
    x, y = torch.randn(2, 300, 300, generator=torch.Generator().manual_seed(1))
    exact = x.double() @ y.double()

    with using_products(choose_products()):
        product = x @ y

    assert (product - exact).norm() / exact.norm() < matmul.EXACT


def test_torch_is_left_as_it_was_also_after_an_error() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision

    with using_products("onednn"):
        assert onednn_multiplies()
    with pytest.raises(RuntimeError, match="shapes"), using_products("onednn"):
        torch.ones(2, 3) @ torch.ones(2, 3)

    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert not onednn_multiplies()


def test_attention_in_bfloat16_differs_by_roundings_only() -> None:
    q, k, v = torch.randn(3, 1, 48, 2, 32, generator=torch.Generator().manual_seed(2))
    pe = rotary_table(position_ids(1, 6, 8), (8, 12, 12), 10_000)
    exact = attention(q.bfloat16().float(), k.bfloat16().float(), v.bfloat16().float(), pe)

    with using_products("onednn"):
        heard = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), pe)

    assert heard.dtype == torch.bfloat16
    assert (heard.float() - exact).norm() / exact.norm() < 5e-3
