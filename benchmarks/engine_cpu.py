"""How fast our engine is beside the official code and diffusers, on a CPU: one mid-size random model, the same edits.

    python -m benchmarks.engine_cpu [--repetitions 5] [--threads 1]

All engines load the same folder and take turns, so that whatever else the machine does meets all; figures are
medians. One thread, because two wait for each other at every layer as soon as another process takes a core.
diffusers runs as its users run it, its autoencoder in the dtype of everything else, where the reference's is float32.
Needs third_party/flux1 and diffusers (`pip install '.[benchmarks]'`). Takes about six minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kontext
from benchmarks.gpu.diffusers_rival import DiffusersKontext
from benchmarks.random_model import CLIP_WIDTH, T5_WIDTH, write_random_model
from benchmarks.report import write_result
from kontext import official
from kontext.config import AutoencoderConfig, ModelConfig, Resolution, TransformerConfig
from kontext.matmul import using_products
from kontext.pipeline import Encoded, Kontext
from kontext.request import Edited, EditRequest
from kontext.sampling import pack_latents, position_ids, starting_noise, token_grid

SIZE: Resolution = (384, 384)
TEXT_TOKENS = 256
STEPS = 4
MODEL = ModelConfig(
    name="random, hidden 1024",
    transformer=TransformerConfig(
        hidden_size=1024,
        num_heads=8,
        depth=2,
        depth_single_blocks=4,
        context_in_dim=T5_WIDTH,
        vec_in_dim=CLIP_WIDTH,
    ),
    autoencoder=AutoencoderConfig(ch=64),
    max_sequence_length=TEXT_TOKENS,
    preferred_resolutions=(SIZE,),
)
STAGES = ("encode", "sample", "decode")
RIVALS = ("official", "diffusers")

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Engines:
    """Everything that is compared, with one model in one dtype."""

    ours: dict[str, Kontext]  # by the name in the result
    official: Kontext
    diffusers: DiffusersKontext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {**vars(arguments), "load_average_before": round(os.getloadavg()[0], 2)}
    request = EditRequest((noise_picture(SIZE),), "make it snow", num_inference_steps=STEPS, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), MODEL, seed=1)
        for dtype in (torch.float32, torch.bfloat16):
            engines = load_engines(Path(folder), dtype)
            name = str(dtype).removeprefix("torch.")
            figures[f"forward_{name}"] = measure_forward(engines, request, arguments.repetitions)
            figures[f"edit_{name}"] = measure_edit(engines, request, arguments.repetitions)
    path = write_result("engine_cpu", describe_model() | figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


def load_engines(folder: Path, dtype: torch.dtype) -> Engines:
    # In bfloat16 the fast kernels are an option, in float32 the default.
    ours = {"ours": "auto"} if dtype == torch.float32 else {"ours": "auto", "ours_fast": "fast"}
    return Engines(
        ours={
            # Nothing is kept: every edit is encoded, as in the others.
            name: kontext.load(folder, device="cpu", dtype=dtype, cache_bytes=0, kernels=kernels)
            for name, kernels in ours.items()
        },
        official=official.load(folder, device="cpu", dtype=dtype),
        diffusers=DiffusersKontext(folder, torch.device("cpu"), compile=False, dtype=dtype),
    )


def describe_model() -> dict[str, Any]:
    rows, columns = token_grid(*SIZE)
    config = MODEL.transformer
    return {
        "hidden_size": config.hidden_size,
        "double_blocks": config.depth,
        "single_blocks": config.depth_single_blocks,
        "picture_pixels": list(SIZE),
        "tokens": {"target": rows * columns, "reference": rows * columns, "text": TEXT_TOKENS},
        "steps_of_an_edit": STEPS,
    }


@torch.inference_mode()
def measure_forward(engines: Engines, request: EditRequest, repetitions: int) -> dict[str, Any]:
    """One call of the transformer, with everything it computes from text and positions."""
    encoded = engines.ours["ours"].encode(request)
    inputs = forward_inputs(encoded, request, engines.ours["ours"].dtype)
    forwards: dict[str, Callable[[], Tensor]] = {
        name: using_products(ours.products)(partial(our_forward, ours, inputs)) for name, ours in engines.ours.items()
    }
    forwards["official"] = lambda: engines.official.networks.transformer(**inputs)
    forwards["diffusers"] = lambda: engines.diffusers.pipe.transformer(**diffusers_inputs(inputs)).sample
    velocities = {name: forward() for name, forward in forwards.items()}
    seconds = take_turns({name: timed(forward) for name, forward in forwards.items()}, repetitions)
    differences = {
        f"{name}_from_{rival}": relative_difference(velocities[name], velocities[rival])
        for name, rival in product(engines.ours, RIVALS)
    }
    return compare(seconds) | {"relative_difference": differences}


def our_forward(ours: Kontext, inputs: dict[str, Tensor]) -> Tensor:
    transformer = ours.networks.transformer
    conditioning = transformer.condition(
        inputs["txt"], inputs["y"], inputs["guidance"], inputs["timesteps"][None], inputs["img_ids"]
    )
    return transformer(inputs["img"], 0, conditioning)  # type: ignore[no-any-return]


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def forward_inputs(encoded: Encoded, request: EditRequest, dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs of the first step, under the names of the official forward."""
    noise = pack_latents(starting_noise(*encoded.size, request.seed)).to(dtype)
    target_ids = position_ids(0, *token_grid(*encoded.size))
    return {
        "img": torch.cat((noise, encoded.references), dim=1),
        "img_ids": torch.cat((target_ids, encoded.reference_ids), dim=1),
        "txt": encoded.txt,
        "txt_ids": torch.zeros(*encoded.txt.shape[:2], 3),
        "y": encoded.pooled,
        "timesteps": torch.ones(1, dtype=dtype),
        "guidance": torch.full((1,), request.guidance_scale, dtype=dtype),
    }


def diffusers_inputs(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs under diffusers' names; its pipeline keeps guidance in float32."""
    return {
        "hidden_states": inputs["img"],
        "img_ids": inputs["img_ids"][0],
        "encoder_hidden_states": inputs["txt"],
        "txt_ids": inputs["txt_ids"][0],
        "pooled_projections": inputs["y"],
        "timestep": inputs["timesteps"],
        "guidance": inputs["guidance"].float(),
    }


def measure_edit(engines: Engines, request: EditRequest, repetitions: int) -> dict[str, Any]:
    """A whole edit, from PIL picture to PIL picture, and each of its stages."""
    edits: dict[str, Callable[[], Edited]] = {
        name: partial(engine.run, request)
        for name, engine in [*engines.ours.items(), ("official", engines.official), ("diffusers", engines.diffusers)]
    }
    pictures = {name: np.asarray(edit().image).astype(int) for name, edit in edits.items()}
    edited = take_turns(edits, repetitions)
    seconds = {stage: {name: [run.timings[stage] for run in runs] for name, runs in edited.items()} for stage in STAGES}
    whole = {name: [sum(run.timings.values()) for run in runs] for name, runs in edited.items()}
    differences = {
        f"{name}_from_{rival}": pixel_difference(pictures[name], pictures[rival])
        for name, rival in product(engines.ours, RIVALS)
    }
    by_stage = {stage: compare(figures) for stage, figures in seconds.items()}
    return {**compare(whole), **by_stage, "pixel_difference": differences}


def pixel_difference(ours: Any, theirs: Any) -> dict[str, float]:
    """Of two pictures, of 255."""
    difference = np.abs(ours - theirs)
    return {"largest": int(difference.max()), "mean": round(float(difference.mean()), 4)}


def take_turns(engines: dict[str, Callable[[], Measured]], repetitions: int) -> dict[str, list[Measured]]:
    """Measure all several times, to and fro: what the one before leaves in caches and free memory meets others too."""
    results: dict[str, list[Measured]] = {name: [] for name in engines}
    order = list(engines)
    for _ in range(repetitions):
        for name in order:
            results[name].append(engines[name]())
        order.reverse()
    return results


def timed(call: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return measure


def compare(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and ours as a part of theirs, below 1 when faster: of the medians, and of the least disturbed runs."""
    figures = {f"{name}_seconds": round(median(values), 4) for name, values in seconds.items()}
    for ours, rival in product([name for name in seconds if name not in RIVALS], RIVALS):
        figures[f"{ours}_to_{rival}"] = round(median(seconds[ours]) / median(seconds[rival]), 3)
        figures[f"{ours}_to_{rival}_fastest"] = round(min(seconds[ours]) / min(seconds[rival]), 3)
    return figures


def noise_picture(size: Resolution) -> Image.Image:
    generator = torch.Generator().manual_seed(1)
    return Image.fromarray(torch.randint(0, 256, (*reversed(size), 3), generator=generator, dtype=torch.uint8).numpy())


if __name__ == "__main__":
    main()
