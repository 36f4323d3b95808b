"""Networks cut into pieces of weights that are on the device as a whole or not at all.

A piece belongs to one module and is needed while that module runs. Weights never change, so the host's copy is the only
one that is kept: a piece that leaves the device is not copied back, its module points to the host's copy again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kontext.weights.reading import Fill, fill_now

ALIGNMENT = 256  # bytes; kernels read fastest from such addresses, and every dtype may begin there


@dataclass(frozen=True)
class Stage:
    """A network, or the part of it, that is at work for a while, and the pieces that it needs in turn."""

    network: nn.Module
    once: Sequence[Piece] = ()  # one after the other, first
    loop: Sequence[Piece] = ()  # then these, again and again


@dataclass(frozen=True)
class _Place:
    """Where a module keeps a weight or a buffer."""

    tensors: dict[str, Any]
    name: str

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = self.tensors[self.name]
        return tensor

    def put(self, tensor: Tensor) -> None:
        # Not `parameter.data = ...`: that refuses tensors made under inference mode and tensors of other kinds.
        self.tensors[self.name] = tensor

    def move(self, device: torch.device, fill: Fill = fill_now) -> None:
        """Have the tensor on a device; where it is there already it is filled with itself."""
        tensor = self.tensor
        if tensor.device.type != device.type:
            moved = torch.empty_like(tensor, device=device)
            self.put(nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved)
        fill(self.tensor, tensor)

    def lay_in(self, buffer: Tensor) -> Tensor:
        """A tensor of this kind, shape and memory order in a flat buffer of its size."""
        strides = torch.empty_like(self.tensor, device="meta").stride()
        laid = buffer.view(self.tensor.dtype).as_strided(self.tensor.shape, strides)
        return nn.Parameter(laid, requires_grad=False) if isinstance(self.tensor, nn.Parameter) else laid


class Piece:
    """The weights of a module, apart from those of some modules in it.

    Args:
        name: unique among the pieces of a model.
        module: what runs while the piece is on the device.
        without: modules in it that are not part of the piece.
    """

    def __init__(self, name: str, module: nn.Module, without: Iterable[nn.Module] = ()) -> None:
        self.name = name
        self.module = module
        left_out = {part for other in without for part in other.modules()}
        self._places = places(part for part in module.modules() if part not in left_out)

    @property
    def nbytes(self) -> int:
        """Bytes in one buffer, with what alignment takes."""
        return sum(_aligned(place.tensor.nbytes) for place in self._places)

    def keys(self) -> set[tuple[int, str]]:
        """Identify the places of the weights."""
        return {(id(place.tensors), place.name) for place in self._places}

    @contextmanager
    def visiting(self, buffer: Tensor) -> Iterator[None]:
        """Within the context the module computes with what a buffer holds in the place of its weights."""
        usual = [place.tensor for place in self._places]
        self.point_to(self.views(buffer))
        try:
            yield
        finally:
            self.point_to(usual)

    def pack(self, buffer: Tensor, fill: Fill = fill_now) -> None:
        """Move the weights into a buffer of `nbytes` bytes; the module points there from now on."""
        views = self.views(buffer)
        for place, view in zip(self._places, views, strict=True):
            fill(view, place.tensor)
        self.point_to(views)

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The weights as they lie in a buffer."""
        views, start = [], 0
        for place in self._places:
            end = start + place.tensor.nbytes
            views.append(place.lay_in(buffer[start:end]))
            start += _aligned(place.tensor.nbytes)
        return views

    def point_to(self, views: Iterable[Tensor]) -> None:
        """Let the module compute with these weights."""
        for place, view in zip(self._places, views, strict=True):
            place.put(view)


def places(modules: Iterable[nn.Module]) -> list[_Place]:
    """Every weight and buffer of some modules."""
    return [
        _Place(tensors, name)
        for module in modules
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]


def places_beside(network: nn.Module, pieces: Iterable[Piece]) -> list[_Place]:
    """Weights and buffers of a network that belong to none of the pieces."""
    taken = set().union(*(piece.keys() for piece in pieces))
    return [place for place in places(network.modules()) if (id(place.tensors), place.name) not in taken]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
