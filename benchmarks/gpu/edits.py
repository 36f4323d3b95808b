"""One way of running the model, measured: load, first job, later jobs, stages, memory; ours and other engines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import kontext
from benchmarks.gpu.parts import kernels_of
from benchmarks.gpu.plan import GIB, Mode, Scale
from benchmarks.images import noise_image
from benchmarks.timing import highest
from kontext import official
from kontext.config import TransformerConfig
from kontext.device import synchronize
from kontext.errors import CheckpointError
from kontext.offload.needs import USUAL_CONTEXT_BYTES
from kontext.request import EditRequest
from kontext.step_cache import StepCache
from kontext.weights.reading import OnProgress

STAGES = ("encode", "sample", "decode")
SEED = 7
PROFILED_STEPS = 2
ANY_CHANGE = 1e6  # threshold of a step cache: random weights change too much from step to step for a usual one
LOOKS_EVERY_SECONDS = 0.25  # each look takes the driver's lock from whoever launches kernels


class Unavailable(Exception):
    """Raised when an engine is not on this machine; that is no failure."""


def measure_edits(scale: Scale, folder: Path, device: torch.device, mode: Mode, image: Path) -> dict[str, Any]:
    """Run some jobs; the last one's image goes to `image`."""
    with highest(lambda: driver_memory(device), LOOKS_EVERY_SECONDS) as driver:
        model, load_figures = load(folder, device, mode)
        jobs = run_jobs(model, scale, mode.jobs, image)
    later = jobs.stages[1:]
    sample_seconds = statistics.median(stage["sample"] for stage in later)
    short = edit_request(scale.pixels, PROFILED_STEPS)
    flops = block_flops(model.config.transformer, scale.tokens) * (jobs.steps_computed or scale.steps)
    return {
        **load_figures,
        "first_job_seconds": round(jobs.seconds[0], 3),
        "last_job_seconds": round(jobs.seconds[-1], 3),
        "median_job_seconds": round(statistics.median(jobs.seconds[1:]), 3),
        "jobs": mode.jobs,
        **({} if jobs.steps_computed is None else {"steps_computed": jobs.steps_computed}),
        **{f"{name}_seconds": round(statistics.median(stage[name] for stage in later), 4) for name in STAGES},
        "sample_tflops_per_second": round(flops / sample_seconds / 1e12, 2),
        "attention": getattr(model, "attention", "default"),
        **jobs.decoded,
        **{f"peak_{name}_gib": round(peak / GIB, 2) for name, peak in (driver | allocator_peaks(device)).items()},
        **predicted(model, scale.steps),
        **how_compiled(model, device, mode),
        **({"kernels_of_two_steps": kernels_of(partial(model.run, short), device)} if mode.has_profile else {}),
    }


def measure_load(folder: Path, device: torch.device, started_at: float) -> dict[str, Any]:
    """Load and warm up as a worker does, with system and compiler caches filled.

    Args:
        started_at: start of the process, by `time.time`.
    """
    model, figures = load(folder, device, Mode())
    model.warm_up()
    ready = {"ready_seconds": round(time.time() - started_at, 2)}
    return {f"{name}_warm": value for name, value in (figures | ready).items()}


def load(folder: Path, device: torch.device, mode: Mode) -> tuple[Any, dict[str, float]]:
    """(the engine, seconds until its weights were read and until it was loaded).

    Prompts and images are not cached, so that every job encodes its own. Compiling runs beside the reading, so that
    the engine may be loaded long after its weights are read.
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
        step_cache=StepCache(ANY_CHANGE) if mode.skips_steps else None,
        on_progress=on_progress,
        **offload,
    )


def load_rival(
    engine: str, folder: Path, device: torch.device, compile: bool, on_progress: OnProgress, **offload: Any
) -> Any:
    """Load "official" or "diffusers".

    Raises:
        Unavailable: its code is missing, or cannot be imported.
    """
    try:
        if engine == "official":
            official.import_official(())
        else:
            from benchmarks.gpu.diffusers_rival import DiffusersKontext
    except (CheckpointError, ImportError, RuntimeError) as error:  # the last wraps failed imports in diffusers
        raise Unavailable(f"{engine}: {error}") from error
    if engine == "official":
        return official.load(folder, device=str(device), on_progress=on_progress, **offload)
    return DiffusersKontext(folder, device, compile)


def edit_request(pixels: int, steps: int) -> EditRequest:
    """The edit that is measured, of a square image."""
    image = noise_image((pixels, pixels))
    return EditRequest(
        (image,),
        "make it snow",
        num_inference_steps=steps,
        seed=SEED,
        width=pixels,
        height=pixels,
        size_mode="reference",  # the work that diffusers does for the same request
    )


@dataclass(frozen=True)
class Jobs:
    """Measurements of some jobs."""

    seconds: list[float]  # of every job, from image to image
    stages: list[dict[str, float]]  # seconds of its stages
    decoded: dict[str, Any]  # of the last one's image, before it had 8 bits
    steps_computed: int | None  # of the last one, with a step cache


def run_jobs(model: Any, scale: Scale, jobs: int, image: Path) -> Jobs:
    seconds, stages = [], []
    with last_decoded(model) as decoded:
        for _ in range(jobs):
            decoded.clear()
            started = time.perf_counter()
            edited = model.run(edit_request(scale.pixels, scale.steps))
            seconds.append(time.perf_counter() - started)
            stages.append(edited.timings)
    edited.image.save(image)
    is_finite = {"is_finite": bool(decoded[0].isfinite().all())} if decoded else {}
    return Jobs(seconds, stages, is_finite, edited.steps_computed)


@contextmanager
def last_decoded(model: Any) -> Iterator[list[Tensor]]:
    """Within the context the list holds the tensor that the model decoded last: 8 bits hide what was no number.

    It is checked later, so that no job waits for it. Stays empty for an engine without `decode`.
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


def block_flops(config: TransformerConfig, tokens: int) -> float:
    """Floating-point operations of one step, blocks only.

    Linear layers: 4 + 2r weights of hidden^2 per token, two operations each; attention: 4 * tokens^2 * hidden.
    """
    linear = 2 * (4 + 2 * config.mlp_ratio) * config.hidden_size**2 * tokens
    attention = 4 * tokens**2 * config.hidden_size
    return (config.depth + config.depth_single_blocks) * (linear + attention)


def predicted(model: Any, steps: int) -> dict[str, Any]:
    """The planner's expectation of offload."""
    plan = getattr(model.memory, "plan", None)
    if plan is None:
        return {}
    return {
        "planned_peak_gib": round(plan.peak_bytes / GIB, 2),
        "planned_slow_down": round(plan.slow_down(steps), 3),
        "streamed_parts": len(plan.streamed),
    }


def how_compiled(model: Any, device: torch.device, mode: Mode) -> dict[str, bool]:
    """State of the blocks; "compiler_failed" if the engine went on without the compiler that it should have used."""
    if mode.engine != "native":
        return {}
    is_compiled = "forward" in vars(model.networks.transformer.double_blocks[0])  # an instance's own hides the class's
    failed = device.type == "cuda" and mode.compile is None and not is_compiled
    return {"is_compiled": is_compiled} | ({"compiler_failed": True} if failed else {})


def cap_allocator(device: torch.device, budget_bytes: int) -> None:
    """Limit torch's allocator to a budget less the driver's own memory."""
    if device.type != "cuda":
        return
    _, total = torch.cuda.mem_get_info(device)
    # This function alone refuses "cuda" without a number.
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(allocator_share(budget_bytes, total), index)


def allocator_share(budget_bytes: int, total_bytes: int) -> float:
    return min(1.0, max(0, budget_bytes - USUAL_CONTEXT_BYTES) / total_bytes)


def allocator_peaks(device: torch.device) -> dict[str, int]:
    """Most bytes that torch's allocator gave out, and held."""
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.max_memory_allocated(device),
        "reserved": torch.cuda.max_memory_reserved(device),
    }


def driver_memory(device: torch.device) -> dict[str, int]:
    """Bytes of the device in use by any process, as the driver counts them."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"driver": total - free}
