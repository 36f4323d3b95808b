"""From a model's files to a model that edits: choose, map, adapt, place, compile."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kontext.attention_kernels import choose_backend
from kontext.compile import check_compiler, compile_ahead, compile_autoencoder, compile_blocks
from kontext.device import choose_device, default_dtype
from kontext.errors import DeviceError
from kontext.matmul import choose_products
from kontext.networks import Networks, load_networks
from kontext.offload.memory import Resident, memory_for
from kontext.offload.workload import native_workload
from kontext.options import EngineOptions
from kontext.pipeline import Kontext
from kontext.precision import set_precision
from kontext.prepared.machine import facts_of
from kontext.prepared.manifest import Choices
from kontext.prepared.preparation import Preparation, look_up
from kontext.weights.fingerprint import fingerprint
from kontext.weights.layout import ModelFiles, find_model
from kontext.weights.reading import OnProgress, Reader
from kontext.weights.values import AT_ONCE, Values

log = logging.getLogger(__name__)


def load(
    model: str | Path | None = None,
    options: EngineOptions | None = None,
    *,
    on_progress: OnProgress | None = None,
    **changes: Any,
) -> Kontext:
    """Load a Kontext model, as in `load("/models/FLUX.1-Kontext-dev", device="cuda", offload=True)`.

    Args:
        model: a folder, a hub id (from the Hugging Face cache, also offline), or None for the bundled tiny model.
        options: the defaults of `EngineOptions` when None.
        on_progress: called with (bytes read, bytes in all) while weights are read, by one thread at a time but not
            always the same. What it raises ends the loading and is passed on.
        changes: fields of `EngineOptions` that differ from `options`.
    Raises:
        BudgetError: the model does not fit the budget, however its weights are streamed.
        CheckpointError: files are missing, cut short, or do not fit.
        DeviceError: the device is not there, or cannot compile what was to be compiled.
        DeviceTaken: other programs leave too little of the device's memory.
        RequestError: max_sequence_length, cache_bytes, attention, precision or kernels cannot be used.
    """
    options = replace(options or EngineOptions(), **changes)

    # 1. Choose, before anything is read: what cannot work fails within seconds.
    choice = _choose(model, options)

    # 2. Map: networks whose weights lie in their files. Nothing is read yet.
    reader = Reader(choice.device, on_progress)
    networks = load_networks(choice.files, choice.dtype, reader.convert)

    # 3. Adapt before placing: layers of another precision have weights of other sizes, and a budget's plan measures a
    #    block, which has to be the compiled one or it would be compiled for the plan and again for the edit.
    approximations = _adapt(networks, choice, options, reader)

    # 4. Place: every weight gets its room on the device or in host memory, and is queued to be read into it.
    loaded = Kontext(
        networks,
        replace(choice.files.config, most_pixels=options.most_pixels or choice.files.config.most_pixels),
        fingerprint=choice.fingerprint,
        memory=Resident(choice.device),
        seam_dtype=options.seam_dtype,
        max_sequence_length=options.max_sequence_length or choice.files.config.max_sequence_length,
        image_options=options.image_options,
        cache_bytes=options.cache_bytes,
        attention=choice.attention,
        products=choice.products,
        preparation=choice.preparation,
        approximations=approximations,
        lora_bytes=options.lora_bytes,
        values=reader,
        step_cache=options.step_cache,
    )
    loaded.memory = memory_for(native_workload(loaded), choice.device, options.offload, options.vram_budget_bytes)
    place(loaded, reader)

    # 5. Compile while weights are read, which needs places but no values. Leaving the context waits for the values.
    with reader.reading():
        if choice.is_compiled:
            with loaded.memory.dry():
                compile_ahead(loaded)
    return loaded


def place(model: Kontext, values: Values = AT_ONCE) -> None:
    """Bring a model's weights to where its memory wants them.

    Args:
        values: where the new places get their values from, at once or later, but before an edit.
    Raises:
        BudgetError: the model does not fit the budget.
        DeviceTaken: other programs leave too little of the device's memory.
    """
    model.memory.hold(native_workload(model), values)


def facts_of_load(model: str | Path | None, options: EngineOptions) -> dict[str, str]:
    """Facts on which it depends whether such a load can use what is prepared; see `kontext.prepared`.

    Raises:
        CheckpointError: the model's files are missing.
        DeviceError: the device is not there.
    """
    return _look(model, options).facts


@dataclass(frozen=True)
class _Start:
    """What a look at the machine and at the model says, before anything is measured."""

    device: torch.device
    dtype: torch.dtype
    files: ModelFiles
    fingerprint: str
    facts: dict[str, str]


def _look(model: str | Path | None, options: EngineOptions) -> _Start:
    device = choose_device(options.device)
    dtype = options.dtype or default_dtype(device, options.kernels, options.precision)
    files = find_model(model)
    read = fingerprint(files)
    return _Start(device, dtype, files, read, facts_of(device, dtype, read, options))


@dataclass(frozen=True)
class _Choice:
    """The start, and what the options become on this machine."""

    device: torch.device
    dtype: torch.dtype
    files: ModelFiles
    fingerprint: str
    preparation: Preparation
    attention: str
    products: str
    is_fast: bool  # CPU kernels that round differently from the official code's
    is_compiled: bool


def _choose(model: str | Path | None, options: EngineOptions) -> _Choice:
    start = _look(model, options)
    device, dtype = start.device, start.dtype
    is_fast = device.type == "cpu" and (
        dtype == torch.float32 if options.kernels == "auto" else options.kernels == "fast"
    )
    # First, since the compiler's check finds compiled code here too.
    preparation = look_up(options.prepared, start.facts, wants_compiling(options.compile, device))
    chosen = preparation.choices or Choices(
        attention=choose_backend(start.files.config.transformer, device, dtype, options.attention),
        products=choose_products() if is_fast else "default",
    )
    return _Choice(
        device=device,
        dtype=dtype,
        files=start.files,
        fingerprint=start.fingerprint,
        preparation=preparation,
        attention=chosen.attention,
        products=chosen.products,
        is_fast=is_fast,
        is_compiled=can_compile(options.compile, device),
    )


def _adapt(networks: Networks, choice: _Choice, options: EngineOptions, reader: Reader) -> tuple[str, ...]:
    """Give the networks their precision, layout and compiled blocks; the approximations that this brings."""
    approximations = set_precision(networks.transformer, options.precision, choice.device, choice.dtype, reader)
    networks.autoencoder.channels_last = choice.is_fast
    if choice.is_compiled:
        compile_blocks(networks.transformer)
        compile_autoencoder(networks.autoencoder)
    skipped_steps = () if options.step_cache is None else (str(options.step_cache),)
    return (*approximations, *skipped_steps, *networks.approximations)


def wants_compiling(wanted: bool | None, device: torch.device) -> bool:
    """Whether to compile, if the compiler works."""
    return device.type == "cuda" if wanted is None else wanted


def can_compile(wanted: bool | None, device: torch.device) -> bool:
    """Decide whether to compile; unless it was asked for, a compiler that does not work means running without it.

    Raises:
        DeviceError: it was asked for, and the compiler does not work.
    """
    if not wants_compiling(wanted, device):
        return False
    try:
        check_compiler(device)
    except DeviceError as error:
        if wanted:
            raise
        log.warning("not_compiled reason=%s", error)
        return False
    return True
