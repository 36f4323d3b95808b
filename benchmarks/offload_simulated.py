"""Cost of offload: predicted and measured on a simulated device, and predicted for the 12B model.

    python -m benchmarks.offload_simulated [--steps 6] [--repetitions 3]

Simulated: the CPU computes with one thread while another copies at the rate of an imagined bus, into slots that are
overwritten as on a GPU. That rate is given by the one at which copying all blocks takes as long as computing with them,
so that it means the same on every machine. The planner measures block and bus itself and chooses. A resident and a
streaming model then take turns; of each the least disturbed step counts, and the resident one is what the prediction
starts from, because a busy machine may have disturbed the planner's own measurement.
Predicted for the 12B model: the planner's own figures from published rates; derived, nothing of it is measured.
Takes about four minutes.
"""

from __future__ import annotations

import os
import tempfile
import time
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.gpu.plan import FULL
from benchmarks.random_model import model_config, text_encoder, write_random_model
from benchmarks.report import parser, publish
from benchmarks.timing import take_turns
from kontext import ImageOptions
from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig, ModelConfig
from kontext.device import DeviceMemory
from kontext.loading import place
from kontext.networks import load_networks
from kontext.offload.copies import ThreadCopies
from kontext.offload.memory import Memory, Resident, Streamed
from kontext.offload.needs import USUAL_CONTEXT_BYTES, Workload, needs_of
from kontext.offload.planner import Part, Plan, least_budget, make_plan, seconds_per_step
from kontext.offload.workload import autoencoder_stages, native_workload, text_stages, transformer_stage, working
from kontext.pipeline import Kontext
from kontext.request import EditRequest
from kontext.text import TextEncoder
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.layout import ModelFiles, find_model

CPU = torch.device("cpu")
SIZE = (256, 256)
SIZES = {"hidden_size": 512, "num_heads": 4, "depth": 4, "depth_single_blocks": 8}
MODEL = model_config("random, hidden 512", SIZE, 128, AutoencoderConfig(ch=32, num_res_blocks=1), **SIZES)
BUS = (2.0, 1.0, 0.5)  # rate of the bus by that at which all blocks' copies take as long as their computing
STAYING = (0.0, 0.33, 0.66)  # of the budget between the least there can be and all resident

# Published: pinned copies over PCIe 5 and PCIe 4; a block of 2.9 TFLOP on an H200.
BUSES = {"53 GB/s": 53e9, "26 GB/s": 26e9}
BLOCK_SECONDS = 4.3e-3
BUDGETS_GIB = (24, 16, 12, 8)
VOCABULARIES = {"t5": {"vocab_size": 32128}, "clip": {"vocab_size": 49408}}  # of the published encoders


def measure(steps: int, repetitions: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "steps": steps,
        "repetitions": repetitions,
        "load_average_before": round(os.getloadavg()[0], 2),
        "predicted_12b": predict_12b(),
        "simulated": simulate(steps, repetitions),
    }


def simulate(steps: int, repetitions: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        files = find_model(write_random_model(Path(folder), MODEL, seed=1))
        resident = load(files, Resident(CPU))
        blocks = needs_of(native_workload(resident), 1.0)[0].loop
        # A bus of 1 copies all blocks in the time of one step.
        balanced = sum(block.nbytes for block in blocks) / min(step_seconds(resident, steps))
        figures = []
        for bus, staying in product(BUS, STAYING):
            bytes_per_second = bus * balanced
            memory = Streamed(CPU, budget_between(resident, staying), ThreadCopies(CPU, bytes_per_second))
            compared = compare(resident, load(files, memory), memory, bytes_per_second, steps, repetitions)
            figures.append({"bus_by_need": bus, "budget_between_least_and_resident": staying, **compared})
        return figures


def compare(
    resident: Kontext, streaming: Kontext, memory: Streamed, bytes_per_second: float, steps: int, repetitions: int
) -> dict[str, Any]:
    """Predicted and measured slow-down of steps alone."""
    assert memory.plan is not None
    works = {"resident": partial(step_seconds, resident, steps), "streaming": partial(step_seconds, streaming, steps)}
    least = {name: min(map(min, runs)) for name, runs in take_turns(works, repetitions).items()}
    plan, step = memory.plan, least["resident"]
    need = needs_of(native_workload(streaming), block_seconds=1.0)[0]
    loop = [Part(part.name, part.nbytes, step / len(need.loop)) for part in need.loop]
    predicted = seconds_per_step(loop, plan.streamed, plan.slots, bytes_per_second)
    return {
        "streamed_blocks_bytes_per_step": plan.step_bytes,
        "predicted_step_slow_down": round(predicted / step, 3),
        "measured_step_slow_down": round(least["streaming"] / step, 3),
        "streaming_step_seconds": round(least["streaming"], 4),
        "resident_step_seconds": round(step, 4),
    }


def budget_between(model: Kontext, part: float) -> int:
    """A budget between the least and that of a resident model."""
    need, *others = needs_of(native_workload(model), block_seconds=1.0)
    everything = sum(piece.nbytes for piece in (*need.loop, *need.once)) + need.fixed_bytes + need.working_bytes
    least = least_budget([need, *others])
    return int(least + part * (everything - least))


def load(files: ModelFiles, memory: Memory) -> Kontext:
    model = Kontext(
        load_networks(files, torch.bfloat16),
        files.config,
        fingerprint="",
        memory=memory,
        seam_dtype=torch.bfloat16,
        max_sequence_length=files.config.max_sequence_length,
        image_options=ImageOptions(),
    )
    place(model)
    return model


def step_seconds(model: Kontext, steps: int) -> list[float]:
    """Seconds of every step but the first, which fills the ring."""
    times: list[float] = []
    request = EditRequest((Image.new("RGB", SIZE, "teal"),), "x", num_inference_steps=steps, seed=1)
    model.run(request, on_step=lambda done, total: times.append(time.perf_counter()))
    return [then - now for now, then in pairwise(times)]


def predict_12b() -> list[dict[str, Any]]:
    workload = workload_12b()
    needs = needs_of(workload, BLOCK_SECONDS, DeviceMemory(USUAL_CONTEXT_BYTES, free=0, reserved=0))
    return [
        {"budget_gib": budget, "bus": bus, **describe(make_plan(needs, budget * 2**30, rate), workload)}
        for bus, rate in BUSES.items()
        for budget in BUDGETS_GIB
    ]


def describe(plan: Plan, workload: Workload) -> dict[str, Any]:
    loop = [piece for stage in workload.stages for piece in stage.loop]
    staying = {
        kind: sum(piece.name.startswith(kind) and piece.name not in plan.streamed for piece in loop)
        for kind in ("double", "single")
    }
    return {
        "double_blocks_staying": staying["double"],
        "single_blocks_staying": staying["single"],
        "peak_gib": round(plan.peak_bytes / 2**30, 2),
        "ring_slots": plan.slots,
        "step_seconds": round(plan.step_seconds, 4),
        "copies_outside_seconds": round(plan.once_seconds, 3),
        "slow_down_30_steps": round(plan.slow_down(30), 3),
    }


def workload_12b() -> Workload:
    """The published model's sizes, without its weights."""
    config = ModelConfig()
    transformer = build_on_meta(lambda: Transformer(config.transformer)).to(torch.bfloat16)
    autoencoder = build_on_meta(lambda: Autoencoder(config.autoencoder))
    networks = (text_encoder(part, sizes | VOCABULARIES[part]) for part, sizes in FULL.encoders.items())
    # Nothing is encoded.
    t5, clip = (TextEncoder(one.to(torch.bfloat16), tokenizer=None, output="") for one in networks)  # type: ignore[arg-type]
    return Workload(
        networks=(transformer, autoencoder, t5, clip),
        stages=[*text_stages(t5, clip), *autoencoder_stages(autoencoder), transformer_stage(transformer)],
        working=working(config, config.max_sequence_length, torch.bfloat16.itemsize, is_compiled=True),
        prepare_block=lambda: lambda: None,
    )


if __name__ == "__main__":
    publish("offload_simulated", measure(**vars(parser(__doc__, steps=6, repetitions=3).parse_args())))
