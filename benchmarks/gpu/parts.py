"""What an edit is made of, measured apart: products at the model's shapes, attention, copies, kernels."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.plan import Scale
from benchmarks.images import rounded
from benchmarks.timing import timed
from kontext.attention_kernels import BACKENDS, TOKENS, candidates, measure_backends
from kontext.config import TransformerConfig
from kontext.device import synchronize
from kontext.fused import linear_gelu
from kontext.precision import multiply, quantize_rows
from training.machine import output_of

MULTIPLICATIONS = 20
OTHER_TOKENS = TOKENS - 512  # attention plans for a shape: the first call of another length tells what that costs
COPIED_BYTES = 2**28
SUSTAINED_SECONDS = 4.0
KERNELS_TOLD = 30


def product_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the wide linear layers, whole and in parts."""
    hidden, mlp = config.hidden_size, config.mlp_size
    return {
        "qkv": (3 * hidden, hidden),
        "mlp_in": (mlp, hidden),
        "mlp_out": (hidden, mlp),
        "proj": (hidden, hidden),
        "linear1": (3 * hidden + mlp, hidden),
        "linear2": (hidden, hidden + mlp),
    }


@torch.inference_mode()
def measure_products(scale: Scale, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of the linear layers over the tokens of a usual edit: bfloat16 and, on CUDA, with GELU, and float8."""
    rates: dict[str, Any] = {}
    for name, (outputs, inputs) in product_shapes(scale.model.transformer).items():
        x = torch.randn(scale.tokens, inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) * inputs**-0.5
        bias = torch.randn(outputs, device=device, dtype=torch.bfloat16)
        works: dict[str, Callable[[], object]] = {"bf16": partial(torch.nn.functional.linear, x, weight, bias)}
        if device.type == "cuda":
            works["bf16_gelu"] = partial(linear_gelu, x, weight, bias)
            works["fp8"] = partial(multiply, *quantize_rows(x), *quantize_rows(weight), bias, torch.bfloat16)
        flops = 2 * scale.tokens * outputs * inputs
        rates[name] = {kind: rounded(flops / seconds_of(work, device) / 1e12) for kind, work in works.items()}
    return rates


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call among many, without the first."""

    def many() -> None:
        for _ in range(MULTIPLICATIONS):
            work()
        synchronize(device)

    many()
    return timed(many) / MULTIPLICATIONS


@torch.inference_mode()
def measure_attention(scale: Scale, device: torch.device) -> dict[str, Any]:
    """Of each kernel: TFLOP/s, and milliseconds of the first call for a length and for another one."""
    config = scale.model.transformer
    found: dict[str, Any] = {}
    for tokens in (TOKENS, OTHER_TOKENS):
        x = torch.randn(1, tokens, config.num_heads, config.head_dim, device=device, dtype=torch.bfloat16)
        flops = 4 * tokens**2 * config.hidden_size
        for name, times in measure_backends(x, candidates()).items():
            figures = found.setdefault(name, {"tflops_per_second": round(flops / times.later / 1e12, 1)})
            figures[f"first_call_ms_{tokens}"] = round(1e3 * times.first, 1)
    return found


@torch.inference_mode()
def measure_sustained(scale: Scale, device: torch.device) -> dict[str, Any]:
    """TFLOP/s of the MLP's products and of attention, each alone for seconds, with clock and power at the end.

    An edit takes seconds too, in which a GPU's power limits it more than in the first fraction of one.
    """
    config, tokens = scale.model.transformer, scale.tokens
    hidden, mlp = config.hidden_size, config.mlp_size
    x, wide = (torch.randn(tokens, size, device=device).bfloat16() for size in (hidden, mlp))
    up = torch.randn(mlp, hidden, device=device).bfloat16() * hidden**-0.5
    down = torch.randn(hidden, mlp, device=device).bfloat16() * mlp**-0.5
    heads = torch.randn(1, config.num_heads, tokens, config.head_dim, device=device).bfloat16()

    def multiply() -> None:
        torch.nn.functional.linear(x, up)
        torch.nn.functional.linear(wide, down)

    def attend() -> None:
        with torch.nn.attention.sdpa_kernel(list(BACKENDS.values()), set_priority=True):
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)

    works = {"products": (multiply, 4 * tokens * hidden * mlp), "attention": (attend, 4 * tokens**2 * hidden)}
    found = {}
    for name, (work, flops) in works.items():
        ends_at = time.perf_counter() + SUSTAINED_SECONDS
        while time.perf_counter() < ends_at:
            seconds = seconds_of(work, device)
        state = output_of("nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader")
        found[name] = {"tflops_per_second": rounded(flops / seconds / 1e12), "clock_and_power": state}
    return found


@torch.inference_mode()
def measure_copies(device: torch.device) -> dict[str, float]:
    """GB/s from pinned memory to the device, idle and while it multiplies, and of pinning memory."""
    started = time.perf_counter()
    host = torch.empty(COPIED_BYTES, dtype=torch.uint8, pin_memory=True)
    pinned = COPIED_BYTES / (time.perf_counter() - started)
    target = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    one = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def copy() -> None:
        with torch.cuda.stream(stream):
            target.copy_(host, non_blocking=True)
        stream.synchronize()

    copy()
    idle = COPIED_BYTES / timed(copy)
    for _ in range(100):  # 150 ms of work
        one @ one
    busy = COPIED_BYTES / timed(copy)
    synchronize(device)
    return {
        "pinning_gb_per_second": round(pinned / 1e9, 2),
        "copy_gb_per_second": round(idle / 1e9, 1),
        "copy_gb_per_second_while_multiplying": round(busy / 1e9, 1),
        "device_copy_tb_per_second": round(2 * COPIED_BYTES * 8 / _device_copy_seconds(device) / 1e12, 2),
    }


def _device_copy_seconds(device: torch.device) -> float:
    one = torch.empty(8 * COPIED_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(one)
    return seconds_of(lambda: other.copy_(one), device)


def kernels_of(work: Callable[[], object], device: torch.device) -> list[dict[str, Any]]:
    """The kernels of a piece of work by the time they take: name, calls, milliseconds in all."""
    if device.type != "cuda":
        return []
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        work()
        synchronize(device)
    kernels = [
        event
        for event in profile.key_averages()
        if event.self_device_time_total > 0 and event.device_type.name == "CUDA"
    ]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    return [
        {"kernel": event.key[:160], "calls": event.count, "ms": round(event.self_device_time_total / 1e3, 3)}
        for event in kernels[:KERNELS_TOLD]
    ]
