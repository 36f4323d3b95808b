"""The choice between attention kernels."""

from __future__ import annotations

import pytest
import torch

from kontext.backends import choose_backend, measure_backends, using_backend
from kontext.config import TransformerConfig
from kontext.errors import RequestError

CPU = torch.device("cpu")


def test_a_cpu_has_no_choice_and_measures_nothing() -> None:
    assert choose_backend(TransformerConfig(), CPU, torch.bfloat16) == "default"


def test_a_kernel_asked_for_is_taken_unmeasured() -> None:
    assert choose_backend(TransformerConfig(), CPU, torch.bfloat16, "math") == "math"


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(RequestError, match="attention is 'fastest', expected auto, cudnn, flash"):
        choose_backend(TransformerConfig(), CPU, torch.bfloat16, "fastest")


def test_only_kernels_that_work_here_are_measured() -> None:
    seconds = measure_backends(torch.randn(1, 2, 16, 8), ["cudnn", "flash", "math"])

    assert {"flash", "math"} <= seconds.keys()
    assert all(value > 0 for value in seconds.values())


@pytest.mark.parametrize("name", ["default", "cudnn", "math"])
def test_a_kernel_that_is_not_there_gives_way_to_another(name: str) -> None:
    x = torch.randn(1, 2, 16, 8)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x)

    with using_backend(name):
        assert torch.allclose(torch.nn.functional.scaled_dot_product_attention(x, x, x), expected, atol=1e-6)
