"""Cache of encoded prompts and images in host memory, limited in bytes."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch
from PIL import Image
from torch import Tensor

from kontext.config import Resolution


class TensorCache:
    """Least-recently-used cache of tensors, with counts of hits and misses.

    Args:
        limit_bytes: upper bound of the cached bytes; 0 turns the cache and its counts off.
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
        """Return a key's tensors on the device, from the cache or computed and then cached."""
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
        """Cache copies in host memory: a view would keep its whole storage alive."""
        if _bytes(tensors) > self.limit_bytes:
            return
        self.bytes += _bytes(tensors)
        while self.bytes > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= _bytes(oldest)
        self._kept[key] = tuple(tensor.to("cpu", copy=True) for tensor in tensors)


def image_key(image: Image.Image, size: Resolution) -> Hashable:
    """Key of an RGB image and the size it is resized to, from its pixels and not from its file."""
    return "image", hashlib.sha256(image.tobytes()).digest(), image.size, size


def prompt_key(prompt: str) -> Hashable:
    """Key of a prompt; the number of tokens is the same for all prompts of a loaded model."""
    return "prompt", prompt


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
