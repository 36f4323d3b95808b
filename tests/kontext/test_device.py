"""The device that is chosen, and the dtype of a model for which none was asked."""

from __future__ import annotations

import pytest
import torch

from kontext.device import choose_device, default_dtype
from kontext.errors import DeviceError

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


def gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    """Let torch find one GPU."""
    for function, answer in {
        "is_available": True,
        "device_count": 1,
        "get_device_capability": capability,
        "get_device_name": name,
    }.items():
        monkeypatch.setattr(torch.cuda, function, lambda *device, answer=answer: answer)


@pytest.mark.parametrize(
    ("name", "capability", "is_taken"),
    [("V100", (7, 0), False), ("RTX 2080", (7, 5), False), ("A100", (8, 0), True), ("B200", (10, 0), True)],
)
def test_a_gpu_without_bfloat16_is_refused_by_name_and_left_out_by_auto(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], is_taken: bool
) -> None:
    gpu(monkeypatch, name, capability)

    assert (choose_device("auto").type == "cuda") is is_taken
    if is_taken:
        assert choose_device("cuda").type == "cuda"
        return
    with pytest.raises(DeviceError, match=f"{name} has compute capability {capability[0]}.{capability[1]}.*needs 8.0"):
        choose_device("cuda")
