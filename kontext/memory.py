"""Which weights are on the device.

Weights never change, so a network that leaves the device is not copied back: the copy in host memory is the only one
that is kept, and the parameters point to it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kontext.device import release_cached_memory


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
        slots = _slots(network)
        try:
            for slot in slots:
                slot.put(slot.host.to(self.device))
            yield
        finally:
            for slot in slots:
                slot.put(slot.host)
            release_cached_memory(self.device)  # fragments of one network's size would not serve the next


@dataclass(frozen=True)
class _Slot:
    """A place in a module that holds a weight or a buffer."""

    tensors: dict[str, Any]
    name: str
    host: Tensor

    def put(self, tensor: Tensor) -> None:
        # Not `parameter.data = ...`: that refuses tensors made under inference mode and tensors of other kinds.
        self.tensors[self.name] = tensor


def _slots(network: nn.Module) -> list[_Slot]:
    """Every weight and buffer of a network once, also where two names share a module."""
    return [
        _Slot(tensors, name, tensor)
        for module in network.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
