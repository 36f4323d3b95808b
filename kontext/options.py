"""The options of loading a model, checked before anything is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from kontext.choices import CPU_KERNELS, DEFAULT_CACHE_BYTES, DEFAULT_LORA_BYTES
from kontext.config import LEAST_MOST_PIXELS, LONGEST_TEXT, SHORTEST_TEXT
from kontext.errors import RequestError
from kontext.images import DEFAULT_OPTIONS, ImageOptions
from kontext.step_cache import StepCache


@dataclass(frozen=True)
class EngineOptions:
    """Device, precision, kernels and memory of a model.

    Args:
        device: "auto" (CUDA, else Apple's GPU where it works, else CPU), "cpu", "cuda", "cuda:1", "mps".
        dtype: of transformer and text encoders. None: bfloat16, but float32 on a CPU without bfloat16 instructions
            unless kernels is "reference". float32 also keeps the decoder in float32.
        offload: keep on the device no more weights than the budget allows and stream the others through it. None: only
            where the model does not fit as a whole into what is free of the device.
        vram_budget_bytes: with offload, the device's memory for weights and everything else of a usual edit. None: 16
            GiB, and where offload is None all that is free.
        max_sequence_length: T5 tokens of a prompt, 64 to 1024; None for the model's own, 512 unless it says otherwise.
        most_pixels: of a target that is sampled at the asked size; a larger one is sampled smaller and enlarged. None
            for the model's own, twice the area of its squarest preferred resolution unless it says otherwise.
        image_options: how images come in at `Kontext.edit`, and whether the output has the asked size. A request has
            its images in RGB already.
        seam_dtype: what one network hands to the next is rounded to it. The reference rounds to bfloat16 even
            between float32 networks.
        cache_bytes: of host memory for encoded prompts and images that may come again; 0 keeps none.
        compile: the transformer's blocks and the autoencoder's norms, while weights are read; None for on CUDA only,
            and there only if the compiler works.
        attention: "auto" (the fastest kernel, measured now), or one of `kontext.choices.Attention`.
        precision: of the blocks' linear layers, "bf16" (the dtype) or "fp8", an approximation that results tell of.
        kernels: CPU only. "reference": the official code's kernels, bit-identical in bfloat16; "fast": as accurate,
            rounded differently; "auto": fast in float32, where last bits do not show.
        lora_bytes: of LoRA layers that stay for jobs with the same LoRAs: device memory, with offload host memory.
        step_cache: skips steps that hardly differ from the one before, an approximation that results tell of; None
            computes all.
        prepared: folder of what earlier starts have measured and compiled; what fits this one is used, and otherwise
            what this one finds out is kept there by `Kontext.warm_up`. None for neither.
    Raises:
        RequestError: max_sequence_length, most_pixels, cache_bytes or kernels is none of these.
    """

    device: str = "auto"
    dtype: torch.dtype | None = None
    offload: bool | None = False
    vram_budget_bytes: int | None = None
    max_sequence_length: int | None = None
    most_pixels: int | None = None
    image_options: ImageOptions = DEFAULT_OPTIONS
    # From here on ours alone: the official code has its own ways.
    seam_dtype: torch.dtype = torch.bfloat16
    cache_bytes: int = DEFAULT_CACHE_BYTES
    compile: bool | None = None
    attention: str = "auto"
    precision: str = "bf16"
    kernels: str = "auto"
    lora_bytes: int = DEFAULT_LORA_BYTES
    step_cache: StepCache | None = None
    prepared: Path | None = None

    def __post_init__(self) -> None:
        if self.cache_bytes < 0:
            raise RequestError(f"cache_bytes is {self.cache_bytes}, expected 0 or more")
        length = self.max_sequence_length
        if length is not None and not SHORTEST_TEXT <= length <= LONGEST_TEXT:
            raise RequestError(f"max_sequence_length is {length}, expected {SHORTEST_TEXT} to {LONGEST_TEXT}")
        if self.most_pixels is not None and self.most_pixels < LEAST_MOST_PIXELS:
            raise RequestError(f"most_pixels is {self.most_pixels}, expected {LEAST_MOST_PIXELS} or more")
        if self.kernels not in CPU_KERNELS:
            raise RequestError(f"kernels is {self.kernels!r}, expected {', '.join(CPU_KERNELS)}")
