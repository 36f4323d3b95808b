"""One way of running the model, measured: load, first job, later jobs, stages, memory."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import kontext
from benchmarks.gpu.plan import Mode
from benchmarks.gpu.rivals import load_rival
from benchmarks.gpu.scale import GIB, Scale
from kontext.config import ModelConfig, TransformerConfig
from kontext.device import synchronize
from kontext.offload.memory import CUDA_CONTEXT_BYTES
from kontext.request import EditRequest
from kontext.sampling import token_grid
from kontext.weights.reading import OnProgress

STAGES = ("encode", "sample", "decode")
SEED = 7
LOOKS_EVERY_SECONDS = 0.02


def measure_edits(scale: Scale, folder: Path, device: torch.device, mode: Mode, picture: Path) -> dict[str, Any]:
    """Run some jobs; the last one's picture goes to `picture`."""
    with driver_peak(device) as driver:
        model, load_figures = load(folder, device, mode)
        jobs = run_jobs(model, scale, mode.jobs, picture)
    later = jobs.stages[1:]
    sample_seconds = statistics.median(stage["sample"] for stage in later)
    flops = step_flops(model.config, scale.pixels) * scale.steps
    return {
        **load_figures,
        "first_job_seconds": round(jobs.seconds[0], 3),
        "last_job_seconds": round(jobs.seconds[-1], 3),
        "median_job_seconds": round(statistics.median(jobs.seconds[1:]), 3),
        "jobs": mode.jobs,
        **{f"{name}_seconds": round(statistics.median(stage[name] for stage in later), 4) for name in STAGES},
        "sample_tflops_per_second": round(flops / sample_seconds / 1e12, 2),
        "attention": getattr(model, "attention", "default"),
        **jobs.decoded,
        **driver,
        **allocator_peak(device),
        **predicted(model, scale.steps),
        **how_compiled(model, device, mode),
    }


def measure_load(folder: Path, device: torch.device, started_at: float) -> dict[str, Any]:
    """Load and warm up as a worker does, when system and compiler have seen it all before.

    Args:
        started_at: when the process was started, by `time.time`.
    """
    model, figures = load(folder, device, Mode())
    model.warm_up()
    ready = {"ready_seconds": round(time.time() - started_at, 2)}
    return {f"{name}_warm": value for name, value in (figures | ready).items()}


def load(folder: Path, device: torch.device, mode: Mode) -> tuple[Any, dict[str, float]]:
    """(the engine, seconds until its weights were read and until it was loaded).

    Nothing is kept of prompts and pictures, so that every job encodes its own. What is compiled is compiled beside the
    reading, so that the engine may be loaded long after its weights are read.
    """
    read_after = 0.0
    started = time.perf_counter()

    def note(done_bytes: int, total_bytes: int) -> None:
        nonlocal read_after
        read_after = time.perf_counter() - started

    model = _load(folder, device, mode, note)
    synchronize(device)
    figures = {"load_seconds": round(time.perf_counter() - started, 2)}
    return model, figures | ({"read_seconds": round(read_after, 2)} if read_after else {})


def _load(folder: Path, device: torch.device, mode: Mode, on_progress: OnProgress) -> Any:
    offload: dict[str, Any] = {}
    if mode.budget_bytes is not None:
        offload = {"offload": True, "vram_budget_bytes": mode.budget_bytes}
    if mode.engine != "native":
        return load_rival(mode.engine, folder, device, bool(mode.compile), on_progress, **offload)
    return kontext.load(
        folder,
        dtype=torch.bfloat16,
        device=str(device),
        cache_bytes=0,
        compile=mode.compile,
        attention=mode.attention,
        precision=mode.precision,
        on_progress=on_progress,
        **offload,
    )


@dataclass(frozen=True)
class Jobs:
    """How some jobs went."""

    seconds: list[float]  # of every job, from picture to picture
    stages: list[dict[str, float]]  # seconds of its stages
    decoded: dict[str, Any]  # of the last one's picture, before it had 8 bits


def run_jobs(model: Any, scale: Scale, jobs: int, picture: Path) -> Jobs:
    seconds, stages = [], []
    with last_decoded(model) as decoded:
        for _ in range(jobs):
            decoded.clear()
            started = time.perf_counter()
            edited = model.run(
                EditRequest(
                    (noise_picture(scale.pixels),),
                    "make it snow",
                    num_inference_steps=scale.steps,
                    seed=SEED,
                    width=scale.pixels,
                    height=scale.pixels,
                )
            )
            seconds.append(time.perf_counter() - started)
            stages.append(edited.timings)
    edited.image.save(picture)
    return Jobs(seconds, stages, {"is_finite": bool(decoded[0].isfinite().all())} if decoded else {})


@contextmanager
def last_decoded(model: Any) -> Iterator[list[Tensor]]:
    """Within the context the list holds what the model decoded last: 8 bits do not tell what was no number.

    It is looked at later, so that no job waits for it. Stays empty for an engine that does not tell.
    """
    kept: list[Tensor] = []
    decode = getattr(model, "decode", None)
    if decode is None:
        yield kept
        return

    def keep(latents: Tensor) -> Tensor:
        kept[:] = [decode(latents)]
        return kept[0]

    model.decode = keep
    try:
        yield kept
    finally:
        del model.decode  # the class's own is behind it


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


def how_compiled(model: Any, device: torch.device, mode: Mode) -> dict[str, bool]:
    """Whether blocks are compiled, and a word where they should be and the engine goes on without a compiler."""
    if mode.engine != "native":
        return {}
    is_compiled = "forward" in vars(model.networks.transformer.double_blocks[0])  # an instance's own hides the class's
    failed = device.type == "cuda" and mode.compile is None and not is_compiled
    return {"is_compiled": is_compiled} | ({"compiler_failed": True} if failed else {})


def cap_allocator(device: torch.device, budget_bytes: int) -> None:
    """Keep torch's allocator to what a budget leaves beside the driver's own memory."""
    if device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    # This function alone refuses "cuda" without a number.
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(allocator_share(budget_bytes, total), index)


def allocator_share(budget_bytes: int, total_bytes: int) -> float:
    return min(1.0, max(0, budget_bytes - CUDA_CONTEXT_BYTES) / total_bytes)


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
