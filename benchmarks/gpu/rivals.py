"""Other engines for the same edit, where their code is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kontext import official
from kontext.errors import CheckpointError
from kontext.weights.reading import OnProgress


class Unavailable(Exception):
    """Raised when what shall be measured is not on this machine; that is no failure."""


def load_rival(
    engine: str, folder: Path, device: torch.device, compile: bool, on_progress: OnProgress, **offload: Any
) -> Any:
    """Load "official" or "diffusers".

    Raises:
        Unavailable: its code is missing, or cannot be imported.
    """
    try:
        if engine == "official":
            official.import_official(())
        else:
            from benchmarks.gpu.diffusers_rival import DiffusersKontext
    except (CheckpointError, ImportError, RuntimeError) as error:  # diffusers wraps in the last what it cannot import
        raise Unavailable(f"{engine}: {error}") from error
    if engine == "official":
        return official.load(folder, device=str(device), on_progress=on_progress, **offload)
    return DiffusersKontext(folder, device, compile)
