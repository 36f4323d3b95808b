"""From a model's files to a model that edits: which device, which kernels, what stays where, what is compiled."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from kontext.attention_kernels import choose_backend
from kontext.choices import CPU_KERNELS, DEFAULT_BUDGET_BYTES, DEFAULT_CACHE_BYTES
from kontext.compile import check_compiler, compile_autoencoder, compile_blocks
from kontext.config import LONGEST_TEXT, SHORTEST_TEXT
from kontext.device import choose_device, default_dtype
from kontext.errors import DeviceError, RequestError
from kontext.images import DEFAULT_OPTIONS, ImageOptions
from kontext.matmul import choose_products
from kontext.networks import load_networks
from kontext.offload.memory import Resident, Streamed
from kontext.pipeline import Kontext
from kontext.precision import set_precision
from kontext.weights.checkpoint import fingerprint
from kontext.weights.layout import find_model
from kontext.weights.reading import OnProgress, Reader

log = logging.getLogger(__name__)


def load(
    model: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    seam_dtype: torch.dtype = torch.bfloat16,
    offload: bool = False,
    vram_budget_bytes: int = DEFAULT_BUDGET_BYTES,
    max_sequence_length: int | None = None,
    image_options: ImageOptions = DEFAULT_OPTIONS,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    compile: bool | None = None,
    attention: str = "auto",
    precision: str = "bf16",
    kernels: str = "auto",
    on_progress: OnProgress | None = None,
) -> Kontext:
    """Load a Kontext model.

    Args:
        model: a folder, a hub id (from the Hugging Face cache, also offline), or None for the bundled tiny model.
        device: "auto" (CUDA, else Apple's GPU where it works, else CPU), "cpu", "cuda", "cuda:1", "mps".
        dtype: of transformer and text encoders. None: bfloat16, but float32 on a CPU without bfloat16 instructions
            unless kernels is "reference". float32 also keeps the decoder in float32.
        seam_dtype: what one network hands to the next is rounded to it. The reference rounds to bfloat16 even
            between float32 networks.
        offload: keep on the device no more weights than the budget allows and stream the others through it.
        vram_budget_bytes: with offload, the device's memory for weights and everything else of a usual edit.
        max_sequence_length: T5 tokens of a prompt, 64 to 1024; None for the model's own, 512 unless it says otherwise.
        image_options: how pictures come in and go out.
        cache_bytes: of host memory for encoded prompts and pictures that may come again; 0 keeps none.
        compile: the transformer's blocks and the autoencoder, while weights are read; None for on CUDA only,
            and there only if the compiler works.
        attention: "auto" (the fastest kernel, measured now), or one of `kontext.attention_kernels.KERNELS`.
        precision: of the blocks' linear layers, "bf16" (the dtype) or "fp8", an approximation that results tell of.
        kernels: of a CPU. "reference" takes those of the official code, whose bits bfloat16 pictures then have; "fast"
            others that are as exact; "auto" is fast in float32, where last bits do not show.
        on_progress: called with (bytes read, bytes in all) while weights are read, by one thread at a time but not
            always the same. What it raises ends the loading and is passed on.
    Raises:
        BudgetError: the model does not fit the budget, however its weights are streamed.
        CheckpointError: files are missing, cut short, or do not fit.
        DeviceError: the device is not there, or cannot compile what was to be compiled.
        RequestError: max_sequence_length, cache_bytes, attention, precision or kernels is none of these.
    """
    chosen = choose_device(device)
    if cache_bytes < 0:
        raise RequestError(f"cache_bytes is {cache_bytes}, expected 0 or more")
    if max_sequence_length is not None and not SHORTEST_TEXT <= max_sequence_length <= LONGEST_TEXT:
        raise RequestError(f"max_sequence_length is {max_sequence_length}, expected {SHORTEST_TEXT} to {LONGEST_TEXT}")
    if kernels not in CPU_KERNELS:
        raise RequestError(f"kernels is {kernels!r}, expected {', '.join(CPU_KERNELS)}")
    dtype = dtype or default_dtype(chosen, kernels, precision)
    is_fast = chosen.type == "cpu" and (dtype == torch.float32 if kernels == "auto" else kernels == "fast")
    files = find_model(model)
    backend = choose_backend(files.config.transformer, chosen, dtype, attention)
    reader = Reader(chosen, on_progress)
    networks = load_networks(files, dtype, reader.convert)
    if precision != "bf16":
        reader.settle(networks.transformer)
    approximations = set_precision(networks.transformer, precision, chosen, dtype)
    networks.autoencoder.channels_last = is_fast
    is_compiled = can_compile(compile, chosen)
    if is_compiled:
        compile_blocks(networks.transformer)
        compile_autoencoder(networks.autoencoder)
    loaded = Kontext(
        networks,
        files.config,
        fingerprint=fingerprint(files),
        memory=Streamed(chosen, vram_budget_bytes) if offload else Resident(chosen),
        seam_dtype=seam_dtype,
        max_sequence_length=max_sequence_length or files.config.max_sequence_length,
        image_options=image_options,
        cache_bytes=cache_bytes,
        attention=backend,
        products=choose_products() if is_fast else "default",
        approximations=approximations,
        fill=reader.fill,
    )
    with reader.reading():
        if is_compiled:
            loaded.compile_ahead()
    return loaded


def can_compile(wanted: bool | None, device: torch.device) -> bool:
    """Whether to compile; where nobody insists, slower is better than not at all.

    Raises:
        DeviceError: it was asked for, and the compiler does not work.
    """
    if wanted is False or (wanted is None and device.type != "cuda"):
        return False
    try:
        check_compiler(device)
    except DeviceError as error:
        if wanted:
            raise
        log.warning("not_compiled reason=%s", error)
        return False
    return True
