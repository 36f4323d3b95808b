"""The dtype of a model for which none was asked."""

from __future__ import annotations

import pytest
import torch

from kontext.device import default_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "has_instructions", "kernels", "precision", "dtype"),
    [
        (CPU, True, "auto", "bf16", torch.bfloat16),
        (CPU, False, "auto", "bf16", torch.float32),
        (CPU, False, "fast", "bf16", torch.float32),
        (CPU, False, "reference", "bf16", torch.bfloat16),  # the official code's bits, whatever they cost
        (CPU, False, "auto", "fp8", torch.bfloat16),  # fp8 is an approximation of bfloat16
        (CUDA, False, "auto", "bf16", torch.bfloat16),  # the processor does not matter
    ],
)
def test_a_cpu_without_bfloat16_instructions_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    has_instructions: bool,
    kernels: str,
    precision: str,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr("kontext.device.cpu_computes_in_bfloat16", lambda: has_instructions)

    assert default_dtype(device, kernels, precision) is dtype
