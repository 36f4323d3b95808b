"""Results of a device beside those of a CPU, and the speed of its products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import kontext
from benchmarks.gpu.edits import SEED, edit_request
from benchmarks.gpu.parts import (
    measure_attention,
    measure_copies,
    measure_products,
    measure_sustained,
    seconds_of,
)
from benchmarks.gpu.plan import Scale
from benchmarks.images import relative_difference, rounded
from kontext.precision import Float8Linear

STEPS = 2
# Relative L2 of the latents, device against CPU in the same dtype. In float32 the rounding to bfloat16 between two
# networks may fall the other way, more so as convolutions on a GPU are in TF32; bfloat16 by other kernels costs 0.7 %.
LARGEST_DIFFERENCE = {torch.float32: 5e-3, torch.bfloat16: 5e-2}
# Of a product in float8: the same values, added in another order and rounded to bfloat16.
LARGEST_FLOAT8_DIFFERENCE = 1e-2
FLOAT8_TOKENS = 512


def check_outputs(scale: Scale, folder: Path, device: torch.device) -> dict[str, Any]:
    """Edits of the shallow model on the device against those on a CPU, in float32 and bfloat16.

    Only bfloat16 is compiled too, and only on CUDA: compilers take longest, and nobody compiles float32. The
    cost of bfloat16 against float32 is reported, not judged: random weights read the rounded timestep as another one.
    """
    on_cpu = {dtype: latents(scale, folder, torch.device("cpu"), dtype) for dtype in LARGEST_DIFFERENCE}
    on_device = {dtype: latents(scale, folder, device, dtype) for dtype in LARGEST_DIFFERENCE}
    judged = {
        f"{str(dtype).removeprefix('torch.')}_to_cpu": (on_device[dtype], on_cpu[dtype], largest)
        for dtype, largest in LARGEST_DIFFERENCE.items()
    }
    if device.type == "cuda":
        compiled = latents(scale, folder, device, torch.bfloat16, compile=True)
        judged["bfloat16_compiled_to_cpu"] = (compiled, on_cpu[torch.bfloat16], LARGEST_DIFFERENCE[torch.bfloat16])
    differences = {name: relative_difference(ours, theirs) for name, (ours, theirs, _) in judged.items()}
    precision = relative_difference(on_device[torch.bfloat16], on_cpu[torch.float32])
    return {
        **{name: rounded(value) for name, value in differences.items()},
        "bfloat16_to_cpu_float32": rounded(precision),
        "is_close": all(differences[name] <= largest for name, (_, _, largest) in judged.items()),
    }


@torch.inference_mode()
def latents(scale: Scale, folder: Path, device: torch.device, dtype: torch.dtype, compile: bool = False) -> Tensor:
    model = kontext.load(folder, device=str(device), dtype=dtype, cache_bytes=0, compile=compile)
    request = edit_request(scale.shallow_pixels, STEPS)
    return model.sample(model.encode(request), request).cpu()


@torch.inference_mode()
def check_float8(scale: Scale, device: torch.device) -> dict[str, Any]:
    """One wide linear layer in float8 on the device, whole and in part, against the same on a CPU."""
    config = scale.model.transformer
    torch.manual_seed(SEED)
    linear = nn.Linear(config.hidden_size, config.mlp_size).bfloat16()
    x = torch.randn(FLOAT8_TOKENS, config.hidden_size).bfloat16()
    layer = Float8Linear(linear)
    theirs = layer(x)
    layer, x = layer.to(device), x.to(device)
    half = config.mlp_size // 2
    difference = max(
        relative_difference(layer(x).cpu(), theirs),
        relative_difference(layer.part(x, half, config.mlp_size).cpu(), theirs[:, half:]),
    )
    return {"float8_linear_to_cpu": rounded(difference), "is_close": difference <= LARGEST_FLOAT8_DIFFERENCE}


@torch.inference_mode()
def measure_ceiling(scale: Scale, device: torch.device) -> dict[str, Any]:
    """What this device can do at best: large products, those of the model, attention by each kernel, copies."""
    size = scale.matmul_size
    one = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = seconds_of(lambda: one @ one, device)
    figures = {
        "matmul_tflops_per_second": round(2 * size**3 / seconds / 1e12, 2),
        "products_tflops_per_second": measure_products(scale, device),
    }
    if device.type != "cuda":
        return figures
    return {
        "gpu": torch.cuda.get_device_name(device),
        **figures,
        "attention": measure_attention(scale, device),
        "sustained": measure_sustained(scale, device),
        **measure_copies(device),
    }
