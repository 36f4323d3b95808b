"""What offload is predicted to cost, beside what it costs on a simulated device, and predictions for the 12B model.

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

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

import kontext
from benchmarks.random_model import CLIP_WIDTH, T5_WIDTH, write_random_model
from benchmarks.report import write_result
from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig, ModelConfig, TransformerConfig
from kontext.loading import place
from kontext.networks import load_networks
from kontext.offload.copies import ThreadCopies
from kontext.offload.memory import CUDA_CONTEXT_BYTES, Memory, Resident, Streamed, Workload, need_of
from kontext.offload.planner import Part, Plan, least_budget, make_plan, seconds_per_step
from kontext.offload.workload import autoencoder_stages, native_workload, text_stages, transformer_stage, working_bytes
from kontext.text import TextEncoder
from kontext.transformer import Transformer
from kontext.weights.checkpoint import build_on_meta
from kontext.weights.layout import ModelFiles, find_model

CPU = torch.device("cpu")
SIZE = (256, 256)
MODEL = ModelConfig(
    name="random, hidden 512",
    transformer=TransformerConfig(
        hidden_size=512, num_heads=4, depth=4, depth_single_blocks=8, context_in_dim=T5_WIDTH, vec_in_dim=CLIP_WIDTH
    ),
    autoencoder=AutoencoderConfig(ch=32, num_res_blocks=1),
    max_sequence_length=128,
    preferred_resolutions=(SIZE,),
)
BUS = (2.0, 1.0, 0.5)  # rate of the bus by that at which all blocks' copies take as long as their computing
STAYING = (0.0, 0.33, 0.66)  # of the budget between the least there can be and all resident

# Published: pinned copies over PCIe 5 and PCIe 4; a block of 2.9 TFLOP on an H200.
BUSES = {"53 GB/s": 53e9, "26 GB/s": 26e9}
BLOCK_SECONDS = 4.3e-3
BUDGETS_GIB = (24, 16, 12, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {
        **vars(arguments),
        "load_average_before": round(os.getloadavg()[0], 2),
        "predicted_12b": predict_12b(),
        "simulated": simulate(arguments.steps, arguments.repetitions),
    }
    path = write_result("offload_simulated", figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


def simulate(steps: int, repetitions: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        files = find_model(write_random_model(Path(folder), MODEL, seed=1))
        resident = load(files, Resident(CPU))
        block_seconds = min(step_seconds(resident, steps)) / blocks_of(MODEL.transformer)
        block_bytes = mean_block_bytes(resident)
        return [
            beside(files, resident, bus, bus * block_bytes / block_seconds, staying, steps, repetitions)
            for bus in BUS
            for staying in STAYING
        ]


def beside(
    files: ModelFiles,
    resident: kontext.Kontext,
    bus: float,
    bytes_per_second: float,
    staying: float,
    steps: int,
    repetitions: int,
) -> dict[str, Any]:
    """A plan's prediction and what was measured, of steps alone."""
    memory = Streamed(CPU, budget_between(resident, staying), ThreadCopies(CPU, bytes_per_second))
    streaming = load(files, memory)
    assert memory.plan is not None
    need = need_of(native_workload(streaming), block_seconds=1.0, context_bytes=0)
    resident_seconds: list[float] = []
    streaming_seconds: list[float] = []
    for _ in range(repetitions):
        resident_seconds += step_seconds(resident, steps)
        streaming_seconds += step_seconds(streaming, steps)
    plan, step = memory.plan, min(resident_seconds)
    loop = [Part(part.name, part.nbytes, step / len(need.loop)) for part in need.loop]
    return {
        "bus_by_need": bus,
        "budget_between_least_and_resident": staying,
        "streamed_blocks_bytes_per_step": plan.step_bytes,
        "predicted_step_slow_down": round(
            seconds_per_step(loop, plan.streamed, plan.slots, bytes_per_second) / step, 3
        ),
        "measured_step_slow_down": round(min(streaming_seconds) / step, 3),
        "streaming_step_seconds": round(min(streaming_seconds), 4),
        "resident_step_seconds": round(step, 4),
    }


def budget_between(model: kontext.Kontext, part: float) -> int:
    """A budget between the least and that of a resident model."""
    need = need_of(native_workload(model), block_seconds=1.0, context_bytes=0)
    everything = sum(piece.nbytes for piece in (*need.loop, *need.once)) + need.fixed_bytes + need.working_bytes
    least = least_budget(need)
    return int(least + part * (everything - least))


def load(files: ModelFiles, memory: Memory) -> kontext.Kontext:
    model = kontext.Kontext(
        load_networks(files, torch.bfloat16),
        files.config,
        fingerprint="",
        memory=memory,
        seam_dtype=torch.bfloat16,
        max_sequence_length=files.config.max_sequence_length,
        image_options=kontext.ImageOptions(),
    )
    place(model)
    return model


def step_seconds(model: kontext.Kontext, steps: int) -> list[float]:
    """Seconds of every step but the first, which fills the ring."""
    times: list[float] = []
    picture = Image.new("RGB", SIZE, "teal")
    model.edit(
        picture, "x", num_inference_steps=steps, seed=1, on_step=lambda done, total: times.append(time.perf_counter())
    )
    return [then - now for now, then in pairwise(times)]


def blocks_of(config: TransformerConfig) -> int:
    return config.depth + config.depth_single_blocks


def mean_block_bytes(model: kontext.Kontext) -> float:
    loop = need_of(native_workload(model), 1.0, 0).loop
    return sum(part.nbytes for part in loop) / len(loop)


def predict_12b() -> list[dict[str, Any]]:
    workload = workload_12b()
    need = need_of(workload, BLOCK_SECONDS, CUDA_CONTEXT_BYTES)
    return [
        {"budget_gib": budget, "bus": bus, **describe(make_plan(need, budget * 2**30, rate), workload)}
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
    t5 = text_encoder(
        lambda: T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )
    )
    clip = text_encoder(
        lambda: CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
        )
    )
    networks: Sequence[nn.Module] = (transformer, autoencoder, t5, clip)
    return Workload(
        networks=networks,
        stages=[*text_stages(t5, clip), *autoencoder_stages(autoencoder), transformer_stage(transformer)],
        working_bytes=working_bytes(config, config.max_sequence_length, torch.bfloat16.itemsize),
        prepare_block=lambda: lambda: None,
    )


def text_encoder(build: Any) -> TextEncoder:
    network = build_on_meta(build).to(torch.bfloat16)
    return TextEncoder(network, tokenizer=None, output="")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
