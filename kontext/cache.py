"""What the encoders gave for prompts and pictures seen before, kept in host memory up to a number of bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from PIL import Image
from torch import Tensor

from kontext.config import Resolution


class TensorCache:
    """The tensors used last, and how often they were asked for.

    Args:
        limit_bytes: what is kept never takes more; 0 keeps and counts nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0
        self.bytes = 0
        self._kept: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def recall(
        self, key: Hashable, device: torch.device, compute: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """The tensors of a key on the device: those kept, else those computed, which are kept then."""
        if not self.limit_bytes:
            return compute()
        if key in self._kept:
            self.hits += 1
            self._kept.move_to_end(key)
            return tuple(tensor.to(device) for tensor in self._kept[key])
        self.misses += 1
        tensors = compute()
        self._keep(key, tensors)
        return tensors

    def _keep(self, key: Hashable, tensors: tuple[Tensor, ...]) -> None:
        """Keep a copy of its own in host memory: a view would keep alive all that it is a view of."""
        if _bytes(tensors) > self.limit_bytes:
            return
        self.bytes += _bytes(tensors)
        while self.bytes > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _bytes(oldest)
        self._kept[key] = tuple(tensor.to("cpu", copy=True) for tensor in tensors)


def picture_key(picture: Image.Image, size: Resolution) -> Hashable:
    """Identify an RGB picture and the size it is brought to by its pixels, whatever file they came from."""
    return "picture", hashlib.sha256(picture.tobytes()).digest(), picture.size, size


def prompt_key(prompt: str) -> Hashable:
    """Identify a prompt; text lengths are the same for all prompts of a loaded model."""
    return "prompt", prompt


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
