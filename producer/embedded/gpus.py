"""The GPUs of this machine, for as many workers; asked of the driver, since the producer has no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jobs.errors import SettingsError
from producer.terminal import plural

DRIVER = Path("/proc/driver/nvidia/gpus")


def choose_gpus(asked: int | None, environment: Mapping[str, str], driver: Path | None = None) -> list[str | None]:
    """One entry per worker: the GPU that it shall see, or None where it chooses its device itself.

    Args:
        asked: how many; None means one worker for each GPU that is visible.
        environment: `CUDA_VISIBLE_DEVICES` limits what is visible; `DG_FLUX_KONTEXT_DEVICE` may name one device.
    Raises:
        SettingsError: fewer are visible.
    """
    if asked is not None and asked < 1:
        raise SettingsError(f"--num-gpus {asked}: expected 1 or more; for the processor set DG_FLUX_KONTEXT_DEVICE=cpu")
    if environment.get("DG_FLUX_KONTEXT_DEVICE", "auto") not in ("", "auto", "cuda"):
        return [None]
    visible = _visible(environment, driver or DRIVER)
    if not visible:
        return [None]
    if asked is not None and asked > len(visible):
        raise SettingsError(f"--num-gpus {asked}: {plural(len(visible), 'GPU')} visible here")
    chosen = visible[:asked]
    return list(chosen) if len(visible) > 1 else [None]


def _visible(environment: Mapping[str, str], driver: Path) -> list[str]:
    limited = environment.get("CUDA_VISIBLE_DEVICES")
    if limited is not None:
        return [name.strip() for name in limited.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(list(driver.iterdir())))] if driver.is_dir() else []
