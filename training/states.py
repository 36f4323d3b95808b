"""States of a training on disk: what a stopped one goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state; a kill meanwhile leaves the old one or the new one."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def read_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """The state in a file, its tensors on the device; None where there is none."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return state
