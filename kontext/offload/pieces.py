"""Networks cut into pieces: sets of weights that are on the device as a whole or not at all.

A piece belongs to one module and is needed while that module runs. Weights never change, so a piece that leaves the
device is not copied back: its module points to the host's copy again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kontext.weights.alignment import aligned
from kontext.weights.values import Fill, fill_now


@dataclass(frozen=True)
class Stage:
    """Stage of an edit: the network that runs, and its pieces in the order of use."""

    network: nn.Module
    once: Sequence[Piece] = ()  # used first, one after the other
    loop: Sequence[Piece] = ()  # used then, in a cycle


@dataclass(frozen=True)
class Place:
    """Entry of a module's dictionary that holds a weight or a buffer."""

    tensors: dict[str, Any]
    name: str

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = self.tensors[self.name]
        return tensor

    def put(self, tensor: Tensor) -> None:
        # Not `parameter.data = ...`: that rejects inference tensors and tensors of another dtype or device.
        self.tensors[self.name] = tensor

    def move(self, device: torch.device, fill: Fill = fill_now) -> None:
        """Move the tensor to a device; a tensor that is there already is filled from itself."""
        tensor = self.tensor
        if tensor.device.type != device.type:
            moved = torch.empty_like(tensor, device=device)
            self.put(nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved)
        fill(self.tensor, tensor)

    def lay_in(self, buffer: Tensor) -> Tensor:
        """View a flat buffer of the tensor's size as a tensor of its type, dtype, shape and memory order."""
        strides = torch.empty_like(self.tensor, device="meta").stride()
        laid = buffer.view(self.tensor.dtype).as_strided(self.tensor.shape, strides)
        return nn.Parameter(laid, requires_grad=False) if isinstance(self.tensor, nn.Parameter) else laid


class Piece:
    """Weights of a module, without those of some of its submodules.

    Args:
        name: unique among the pieces of a model.
        module: module that runs while the piece is on the device.
        without: submodules that are not part of the piece.
    """

    def __init__(self, name: str, module: nn.Module, without: Iterable[nn.Module] = ()) -> None:
        self.name = name
        self.module = module
        left_out = {part for other in without for part in other.modules()}
        self._places = places(part for part in module.modules() if part not in left_out)

    @property
    def nbytes(self) -> int:
        """Size as one buffer in bytes, including alignment."""
        return sum(aligned(place.tensor.nbytes) for place in self._places)

    def keys(self) -> set[tuple[int, str]]:
        """Identify the places of the weights."""
        return {(id(place.tensors), place.name) for place in self._places}

    @contextmanager
    def visiting(self, buffer: Tensor) -> Iterator[None]:
        """Context in which the module computes with the contents of a buffer instead of its weights."""
        usual = [place.tensor for place in self._places]
        self.point_to(self.views(buffer))
        try:
            yield
        finally:
            self.point_to(usual)

    def pack(self, buffer: Tensor, fill: Fill = fill_now) -> None:
        """Move the weights into a buffer of `nbytes` bytes; the module points there afterwards."""
        views = self.views(buffer)
        for place, view in zip(self._places, views, strict=True):
            fill(view, place.tensor)
        self.point_to(views)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Views of a buffer as the weights."""
        views, start = [], 0
        for place in self._places:
            end = start + place.tensor.nbytes
            views.append(place.lay_in(buffer[start:end]))
            start += aligned(place.tensor.nbytes)
        return views

    def point_to(self, views: Iterable[Tensor]) -> None:
        """Make the module compute with these weights."""
        for place, view in zip(self._places, views, strict=True):
            place.put(view)


def places(modules: Iterable[nn.Module]) -> list[Place]:
    """Places of all weights and buffers of some modules."""
    return [
        Place(tensors, name)
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def places_beside(network: nn.Module, pieces: Iterable[Piece]) -> list[Place]:
    """Places of the weights and buffers of a network that belong to none of the pieces."""
    taken = set().union(*(piece.keys() for piece in pieces))
    return [place for place in places(network.modules()) if (id(place.tensors), place.name) not in taken]
