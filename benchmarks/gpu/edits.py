"""One way of running the model, measured: load, first job, later jobs, stages, memory."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import kontext
from benchmarks.gpu.scale import GIB, Scale
from kontext import official
from kontext.config import ModelConfig, TransformerConfig
from kontext.device import synchronize
from kontext.reading import OnProgress
from kontext.sampling import token_grid

STAGES = ("encode", "sample", "decode")
SEED = 7
LOOKS_EVERY_SECONDS = 0.02


def measure_edits(
    scale: Scale,
    folder: Path,
    device: torch.device,
    engine: str,
    budget_bytes: int | None,
    compile: bool | None,
    jobs: int,
    picture: Path,
) -> dict[str, Any]:
    """Run some jobs; the last one's picture goes to `picture`.

    Args:
        engine: "native", "official" or "diffusers".
        budget_bytes: of device memory with offload, which torch's allocator is kept to; None for all resident.
        compile: None for what the engine does by itself.
    """
    if budget_bytes is not None and device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        # This function alone refuses "cuda" without a number.
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total), index)
    with driver_peak(device) as driver:
        model, load_figures = load(folder, device, engine, budget_bytes, compile)
        seconds, stages = run_jobs(model, scale, jobs, picture)
    sample_seconds = statistics.median(stage["sample"] for stage in stages[1:])
    flops = step_flops(model.config, scale.pixels) * scale.steps
    return {
        **load_figures,
        "first_job_seconds": round(seconds[0], 3),
        "last_job_seconds": round(seconds[-1], 3),
        "median_job_seconds": round(statistics.median(seconds[1:]), 3),
        "jobs": len(seconds),
        **{f"{name}_seconds": round(statistics.median(job[name] for job in stages[1:]), 4) for name in STAGES},
        "sample_tflops_per_second": round(flops / sample_seconds / 1e12, 2),
        "attention": getattr(model, "attention", "default"),
        **driver,
        **allocator_peak(device),
        **predicted(model, scale.steps),
    }


def load(
    folder: Path, device: torch.device, engine: str, budget_bytes: int | None, compile: bool | None
) -> tuple[Any, dict[str, float]]:
    """(the engine, seconds until its weights were read and until it was loaded).

    Nothing is kept of prompts and pictures, so that every job encodes its own. What is compiled is compiled beside the
    reading, so that the engine may be loaded long after its weights are read.
    """
    read_after = 0.0
    started = time.perf_counter()

    def note(done_bytes: int, total_bytes: int) -> None:
        nonlocal read_after
        read_after = time.perf_counter() - started

    model = _load(folder, device, engine, budget_bytes, compile, note)
    synchronize(device)
    figures = {"load_seconds": round(time.perf_counter() - started, 2)}
    return model, figures | ({"read_seconds": round(read_after, 2)} if read_after else {})


def _load(
    folder: Path,
    device: torch.device,
    engine: str,
    budget_bytes: int | None,
    compile: bool | None,
    on_progress: OnProgress,
) -> Any:
    if engine == "diffusers":
        from benchmarks.gpu.diffusers_rival import DiffusersKontext  # not everybody has diffusers

        return DiffusersKontext(folder, device, bool(compile))
    options: dict[str, Any] = {"device": str(device), "on_progress": on_progress}
    if budget_bytes is not None:
        options |= {"offload": True, "vram_budget_bytes": budget_bytes}
    if engine == "official":
        return official.load(folder, **options)
    return kontext.load(folder, cache_bytes=0, compile=compile, **options)


def run_jobs(model: Any, scale: Scale, jobs: int, picture: Path) -> tuple[list[float], list[dict[str, float]]]:
    """(seconds of every job from picture to picture, seconds of its stages)."""
    seconds, stages = [], []
    for _ in range(jobs):
        started = time.perf_counter()
        edited = model.run(
            noise_picture(scale.pixels),
            "make it snow",
            num_inference_steps=scale.steps,
            seed=SEED,
            width=scale.pixels,
            height=scale.pixels,
        )
        seconds.append(time.perf_counter() - started)
        stages.append(edited.timings)
    edited.image.save(picture)
    return seconds, stages


def noise_picture(pixels: int) -> Image.Image:
    draw = torch.Generator().manual_seed(1)
    return Image.fromarray(torch.randint(0, 256, (pixels, pixels, 3), generator=draw, dtype=torch.uint8).numpy())


def step_flops(config: ModelConfig, pixels: int) -> float:
    """Floating-point operations of one step with one reference of the target's size, blocks only."""
    rows, columns = token_grid(pixels, pixels)
    return block_flops(config.transformer, tokens=2 * rows * columns + config.max_sequence_length)


def block_flops(config: TransformerConfig, tokens: int) -> float:
    """Linear layers: 4 + 2r weights of hidden^2 per token, two operations each; attention: 4 * tokens^2 * hidden."""
    linear = 2 * (4 + 2 * config.mlp_ratio) * config.hidden_size**2 * tokens
    attention = 4 * tokens**2 * config.hidden_size
    return (config.depth + config.depth_single_blocks) * (linear + attention)


def predicted(model: Any, steps: int) -> dict[str, Any]:
    """What the planner expected of offload."""
    plan = getattr(model.memory, "plan", None)
    if plan is None:
        return {}
    return {
        "planned_peak_gib": round(plan.peak_bytes / GIB, 2),
        "planned_slow_down": round(plan.slow_down(steps), 3),
        "streamed_parts": len(plan.streamed),
    }


def allocator_peak(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated(device) / GIB, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved(device) / GIB, 2),
    }


@contextmanager
def driver_peak(device: torch.device) -> Iterator[dict[str, float]]:
    """Watch the driver's own figure of what is used of the device, by whomever; filled in when the context ends."""
    peak: dict[str, float] = {}
    if device.type != "cuda":
        yield peak
        return
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(LOOKS_EVERY_SECONDS):
            free, total = torch.cuda.mem_get_info(device)
            most = max(most, total - free)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()
        peak["peak_driver_gib"] = round(most / GIB, 2)
