"""Named values and defaults of the engine's options, for the engine and for settings; needs no torch."""

from __future__ import annotations

from typing import Literal, get_args

Attention = Literal["auto", "cudnn", "flash", "efficient", "math", "fa3", "fa2"]
CpuKernels = Literal["auto", "reference", "fast"]
Precision = Literal["bf16", "fp8"]

CPU_KERNELS: tuple[str, ...] = get_args(CpuKernels)
PRECISIONS: tuple[str, ...] = get_args(Precision)

ALLOCATOR_VARIABLE, ALLOCATOR_SETTING = "PYTORCH_ALLOC_CONF", "expandable_segments:True"
"""What torch's allocator should be told before it begins: its memory then grows in place, and fragments less."""

DEFAULT_BUDGET_BYTES = 16 * 2**30
DEFAULT_LORA_BYTES = 2 * 2**30  # a few LoRAs of rank 16 to 64 at 0.1 to 0.8 GB each
DEFAULT_CACHE_BYTES = 256 * 2**20  # some 60 prompts of 512 tokens at 4 MB each, or 500 pictures
