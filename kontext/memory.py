"""Which weights are on the device.

Weights never change, so a network that leaves the device is not copied back: the copy in host memory is the only one
that is kept, and the parameters point to it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import nn


class Memory(Protocol):
    """Knows how to have a network on the device while a stage runs."""

    device: torch.device

    def hold(self, network: nn.Module) -> None:
        """Take over a network whose weights are in host memory."""

    def on_device(self, network: nn.Module) -> AbstractContextManager[object]:
        """Within the context the network's weights are on the device."""


class Resident(Memory):
    """Everything stays on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def hold(self, network: nn.Module) -> None:
        network.to(self.device)

    def on_device(self, network: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()


class Offloaded(Memory):
    """Each network is on the device for its own stage only; the largest one sets the peak."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def hold(self, network: nn.Module) -> None:
        """The weights stay where they are."""

    @contextmanager
    def on_device(self, network: nn.Module) -> Iterator[None]:
        tensors = [*network.parameters(), *network.buffers()]
        host = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device)
            yield
        finally:
            for tensor, data in zip(tensors, host, strict=True):
                tensor.data = data
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # fragments of one network's size would not serve the next
