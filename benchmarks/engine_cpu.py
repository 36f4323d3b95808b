"""How fast our engine is beside the official code, on a CPU: the same mid-size random model, the same edits.

    python -m benchmarks.engine_cpu [--repetitions 5] [--threads 1]

Both engines load the same folder and take turns, so that whatever else the machine does meets both; figures are
medians. One thread, because two wait for each other at every layer as soon as another process takes a core.
Needs third_party/flux1. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import kontext
from benchmarks.report import write_result
from kontext import official
from kontext.config import AutoencoderConfig, ModelConfig, Resolution, TransformerConfig
from kontext.pipeline import Edited, Encoded, Kontext
from kontext.request import EditRequest, edit_request
from kontext.sampling import pack_latents, position_ids, starting_noise, token_grid
from tests.parity.random_model import CLIP_WIDTH, T5_WIDTH, write_random_model

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

Measured = TypeVar("Measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures: dict[str, Any] = {**vars(arguments), "load_average_before": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), MODEL, seed=1)
        for dtype in (torch.float32, torch.bfloat16):
            ours = kontext.load(folder, device="cpu", dtype=dtype, cache_bytes=0)  # every edit is encoded, as in theirs
            theirs = official.load(folder, device="cpu", dtype=dtype)
            request = edit_request(noise_picture(SIZE), "make it snow", STEPS, 2.5, seed=7, width=None, height=None)
            name = str(dtype).removeprefix("torch.")
            figures[f"forward_{name}"] = measure_forward(ours, theirs, request, arguments.repetitions)
            figures[f"edit_{name}"] = measure_edit(ours, theirs, request, arguments.repetitions)
    path = write_result("engine_cpu", describe_model() | figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


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
def measure_forward(ours: Kontext, theirs: Kontext, request: EditRequest, repetitions: int) -> dict[str, float]:
    """One call of the transformer, with everything it computes from text and positions."""
    encoded = ours.encode(request)
    inputs = forward_inputs(encoded, request, ours.dtype)

    def our_forward() -> Tensor:
        transformer = ours.networks.transformer
        conditioning = transformer.condition(
            inputs["txt"], inputs["y"], inputs["guidance"], inputs["timesteps"][None], inputs["img_ids"]
        )
        return transformer(inputs["img"], 0, conditioning)  # type: ignore[no-any-return]

    def their_forward() -> Tensor:
        return theirs.networks.transformer(**inputs)  # type: ignore[no-any-return]

    difference = (our_forward().double() - their_forward().double()).norm() / their_forward().double().norm()
    our_seconds, their_seconds = take_turns(timed(our_forward), timed(their_forward), repetitions)
    return compare(our_seconds, their_seconds) | {"relative_difference": float(difference)}


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


def measure_edit(ours: Kontext, theirs: Kontext, request: EditRequest, repetitions: int) -> dict[str, Any]:
    """A whole edit, from PIL picture to PIL picture, and each of its stages."""

    def edit(engine: Kontext) -> Edited:
        return engine.run(request.pictures, request.prompt, num_inference_steps=STEPS, seed=request.seed)

    our_edit, their_edit = edit(ours), edit(theirs)
    difference = np.abs(np.asarray(our_edit.image).astype(int) - np.asarray(their_edit.image))
    our_edits, their_edits = take_turns(lambda: edit(ours).timings, lambda: edit(theirs).timings, repetitions)
    by_stage = {
        stage: compare([edit[stage] for edit in our_edits], [edit[stage] for edit in their_edits]) for stage in STAGES
    }
    whole = compare([sum(edit.values()) for edit in our_edits], [sum(edit.values()) for edit in their_edits])
    return {**whole, **by_stage, "largest_pixel_difference": int(difference.max())}


def take_turns(
    ours: Callable[[], Measured], theirs: Callable[[], Measured], repetitions: int
) -> tuple[list[Measured], list[Measured]]:
    """Measure both several times, first one and then the other ahead."""
    our_results, their_results = [], []
    for repetition in range(repetitions):
        if repetition % 2 == 0:
            our_results.append(ours())
            their_results.append(theirs())
        else:
            their_results.append(theirs())
            our_results.append(ours())
    return our_results, their_results


def timed(call: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return measure


def compare(our_seconds: list[float], their_seconds: list[float]) -> dict[str, float]:
    """Medians, and ours as a part of theirs, below 1 when faster: of the medians, and of the least disturbed runs."""
    ours, theirs = median(our_seconds), median(their_seconds)
    return {
        "ours_seconds": round(ours, 4),
        "official_seconds": round(theirs, 4),
        "ours_to_official": round(ours / theirs, 3),
        "ours_to_official_fastest": round(min(our_seconds) / min(their_seconds), 3),
    }


def noise_picture(size: Resolution) -> Image.Image:
    generator = torch.Generator().manual_seed(1)
    return Image.fromarray(torch.randint(0, 256, (*reversed(size), 3), generator=generator, dtype=torch.uint8).numpy())


if __name__ == "__main__":
    main()
