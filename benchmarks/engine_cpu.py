"""Speed of our engine beside the official code and diffusers on a CPU: one mid-size random model, the same edits.

    python -m benchmarks.engine_cpu [--repetitions 5] [--threads 1]

All engines load the same folder and take turns, so that whatever else the machine does meets all; figures are
medians. One thread, because two wait for each other at every layer as soon as another process takes a core.
diffusers runs as its users run it, its autoencoder in the dtype of everything else, where the reference's is float32.
Needs third_party/flux1 and diffusers (`pip install '.[benchmarks]'`). Takes about six minutes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import kontext
from benchmarks.gpu.diffusers_rival import DiffusersKontext
from benchmarks.images import noise_image, pixel_difference, relative_difference
from benchmarks.random_model import model_config, write_random_model
from benchmarks.report import parser, publish
from benchmarks.timing import take_turns, timed
from kontext import official
from kontext.config import AutoencoderConfig, Resolution
from kontext.matmul import using_products
from kontext.pipeline import Encoded, Kontext
from kontext.request import Edited, EditRequest
from kontext.sampling import pack_latents, position_ids, starting_noise, token_grid

SIZE: Resolution = (384, 384)
TEXT_TOKENS = 256
STEPS = 4
SIZES = {"hidden_size": 1024, "num_heads": 8, "depth": 2, "depth_single_blocks": 4}
MODEL = model_config("random, hidden 1024", SIZE, TEXT_TOKENS, AutoencoderConfig(ch=64), **SIZES)
STAGES = ("encode", "sample", "decode")
RIVALS = ("official", "diffusers")


def measure(repetitions: int, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    figures = describe_model() | {"repetitions": repetitions, "threads": threads}
    figures["load_average_before"] = round(os.getloadavg()[0], 2)
    request = EditRequest((noise_image(SIZE),), "make it snow", num_inference_steps=STEPS, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), MODEL, seed=1)
        for dtype in (torch.float32, torch.bfloat16):
            engines = load_engines(Path(folder), dtype)
            name = str(dtype).removeprefix("torch.")
            figures[f"forward_{name}"] = measure_forward(engines, request, repetitions)
            figures[f"edit_{name}"] = measure_edit(engines, request, repetitions)
    return figures


def load_engines(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Ours and the RIVALS, with one model in one dtype."""
    # In bfloat16 the fast kernels are an option, in float32 the default.
    kernels = {"ours": "auto"} if dtype == torch.float32 else {"ours": "auto", "ours_fast": "fast"}
    ours = {
        # Nothing is cached: every edit is encoded, as in the others.
        name: kontext.load(folder, device="cpu", dtype=dtype, cache_bytes=0, kernels=chosen)
        for name, chosen in kernels.items()
    }
    return {
        **ours,
        "official": official.load(folder, device="cpu", dtype=dtype),
        "diffusers": DiffusersKontext(folder, torch.device("cpu"), compile=False, dtype=dtype),
    }


def ours_among(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in RIVALS]


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
def measure_forward(engines: dict[str, Any], request: EditRequest, repetitions: int) -> dict[str, Any]:
    """One call of the transformer, with everything it computes from text and positions."""
    inputs = forward_inputs(engines["ours"].encode(request), request, engines["ours"].dtype)
    forwards: dict[str, Callable[[], Tensor]] = {
        name: using_products(engines[name].products)(partial(our_forward, engines[name], inputs))
        for name in ours_among(engines)
    }
    forwards["official"] = lambda: engines["official"].networks.transformer(**inputs)
    forwards["diffusers"] = lambda: engines["diffusers"].pipe.transformer(**diffusers_inputs(inputs)).sample
    velocities = {name: forward() for name, forward in forwards.items()}
    seconds = take_turns({name: partial(timed, forward) for name, forward in forwards.items()}, repetitions)
    return compare(seconds) | {"relative_difference": from_rivals(relative_difference, velocities)}


def our_forward(ours: Kontext, inputs: dict[str, Tensor]) -> Tensor:
    transformer = ours.networks.transformer
    conditioning = transformer.condition(
        inputs["txt"], inputs["y"], inputs["guidance"], inputs["timesteps"][None], inputs["img_ids"]
    )
    return transformer(inputs["img"], 0, conditioning)  # type: ignore[no-any-return]


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


def measure_edit(engines: dict[str, Any], request: EditRequest, repetitions: int) -> dict[str, Any]:
    """A whole edit, from PIL image to PIL image, and each of its stages."""
    edits: dict[str, Callable[[], Edited]] = {name: partial(engine.run, request) for name, engine in engines.items()}
    images = {name: edit().image for name, edit in edits.items()}
    edited = take_turns(edits, repetitions)
    seconds = {stage: {name: [run.timings[stage] for run in runs] for name, runs in edited.items()} for stage in STAGES}
    whole = {name: [sum(run.timings.values()) for run in runs] for name, runs in edited.items()}
    by_stage = {stage: compare(figures) for stage, figures in seconds.items()}
    return {**compare(whole), **by_stage, "pixel_difference": from_rivals(pixel_difference, images)}


def from_rivals(difference: Callable[[Any, Any], Any], results: dict[str, Any]) -> dict[str, Any]:
    """Difference of each result of ours from each rival's."""
    return {
        f"{name}_from_{rival}": difference(results[name], results[rival])
        for name, rival in product(ours_among(results), RIVALS)
    }


def compare(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and ours relative to theirs (below 1 is faster): by the medians, and by the least disturbed runs."""
    figures = {f"{name}_seconds": round(median(values), 4) for name, values in seconds.items()}
    for ours, rival in product(ours_among(seconds), RIVALS):
        figures[f"{ours}_to_{rival}"] = round(median(seconds[ours]) / median(seconds[rival]), 3)
        figures[f"{ours}_to_{rival}_fastest"] = round(min(seconds[ours]) / min(seconds[rival]), 3)
    return figures


if __name__ == "__main__":
    publish("engine_cpu", measure(**vars(parser(__doc__, repetitions=5, threads=1).parse_args())))
