"""Memory of the device that this process uses."""

from __future__ import annotations

import sys


def device_memory(device: str) -> tuple[int, int]:
    """Bytes of a CUDA device's memory that tensors use and the most they have used; 0 for every other device."""
    torch = sys.modules.get("torch")  # an engine on a CUDA device has loaded it; nobody else should
    if torch is None or not device.startswith("cuda"):
        return 0, 0
    return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
