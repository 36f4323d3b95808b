"""What a device computes beside a CPU in float32, and how fast it multiplies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kontext
from benchmarks.gpu.edits import SEED, noise_picture
from benchmarks.gpu.scale import Scale
from kontext.backends import TOKENS, candidates, measure_backends
from kontext.device import synchronize
from kontext.request import edit_request

STEPS = 2
# Relative L2 of the latents, device against CPU in the same dtype. In float32 the rounding to bfloat16 between two
# networks may fall the other way, more so as convolutions on a GPU are in TF32; bfloat16 by other kernels costs 0.7 %.
LARGEST_DIFFERENCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2}
MULTIPLICATIONS = 20


def check_outputs(scale: Scale, folder: Path, device: torch.device) -> dict[str, Any]:
    """Edits of the shallow model on the device against those on a CPU, in float32 and bfloat16.

    What bfloat16 costs against float32 is told and not judged: random weights read the rounded timestep as another one.
    """
    on_cpu = {dtype: latents(scale, folder, torch.device("cpu"), dtype) for dtype in LARGEST_DIFFERENCE}
    on_device = {dtype: latents(scale, folder, device, dtype) for dtype in LARGEST_DIFFERENCE}
    differences = {dtype: relative_difference(on_device[dtype], on_cpu[dtype]) for dtype in LARGEST_DIFFERENCE}
    precision = relative_difference(on_device[torch.bfloat16], on_cpu[torch.float32])
    return {
        **{f"{str(dtype).removeprefix('torch.')}_to_cpu": rounded(value) for dtype, value in differences.items()},
        "bfloat16_to_cpu_float32": rounded(precision),
        "is_close": all(value <= LARGEST_DIFFERENCE[dtype] for dtype, value in differences.items()),
    }


@torch.inference_mode()
def latents(scale: Scale, folder: Path, device: torch.device, dtype: torch.dtype) -> Tensor:
    model = kontext.load(folder, device=str(device), dtype=dtype, cache_bytes=0)
    pixels = scale.shallow_pixels
    request = edit_request(noise_picture(pixels), "make it snow", STEPS, 2.5, SEED, pixels, pixels)
    return model.sample(model.encode(request), request).cpu()


def rounded(value: float) -> float:
    return float(f"{value:.2e}")


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@torch.inference_mode()
def measure_ceiling(scale: Scale, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of a large bfloat16 product, and of attention at the size of an edit by each kernel that can."""
    size = scale.matmul_size
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(MULTIPLICATIONS):
        one @ one
    synchronize(device)
    started = time.perf_counter()
    for _ in range(MULTIPLICATIONS):
        one @ one
    synchronize(device)
    seconds = time.perf_counter() - started
    return {
        "matmul_tflops_per_second": round(2 * size**3 * MULTIPLICATIONS / seconds / 1e12, 2),
        "attention_tflops_per_second": measure_attention(scale, device) if device.type == "cuda" else {},
    }


def measure_attention(scale: Scale, device: torch.device) -> dict[str, float]:
    config = scale.model.transformer
    x = torch.randn(1, config.num_heads, TOKENS, config.head_dim, device=device, dtype=torch.bfloat16)
    flops = 4 * TOKENS**2 * config.hidden_size
    return {name: round(flops / seconds / 1e12, 1) for name, seconds in measure_backends(x, candidates()).items()}
