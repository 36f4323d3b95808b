"""The GPUs of this machine, for as many workers; asked of the driver, since the producer has no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs.errors import SettingsError
from jobs.machine import visible_gpus
from producer.terminal import plural


def choose_gpus(asked: int | None, environment: Mapping[str, str], driver: Path | None = None) -> list[str | None]:
    """One entry per worker: the GPU that it shall see, or None where it chooses its device itself.

    Args:
        asked: how many; None means one worker for each GPU that is visible.
        environment: `CUDA_VISIBLE_DEVICES` limits what is visible; `DG_FLUX_KONTEXT_DEVICE` may name one device.
    Raises:
        SettingsError: fewer are visible; one worker needs none.
    """
    if asked is not None and asked < 1:
        raise SettingsError(f"--num-gpus {asked}: expected 1 or more; for the processor set DG_FLUX_KONTEXT_DEVICE=cpu")
    device = environment.get("DG_FLUX_KONTEXT_DEVICE", "") or "auto"
    is_chosen = device not in ("auto", "cuda")
    visible = [] if is_chosen else visible_gpus(environment, driver)
    if asked is not None and asked > max(1, len(visible)):
        why = (
            f"DG_FLUX_KONTEXT_DEVICE={device} has one worker"
            if is_chosen
            else f"{plural(len(visible), 'GPU')} visible here"
        )
        raise SettingsError(f"--num-gpus {asked}: {why}")
    if not visible:
        return [None]
    chosen = visible[:asked]
    return list(chosen) if len(visible) > 1 else [None]
