"""What makes learning fast on a CPU: an attention in plain products.

The kernels behind `scaled_dot_product_attention` are made for long sequences. For the few hundred tokens of a small
picture two batched products and a softmax are faster, forward and back (`python -m benchmarks.learning`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two products and a softmax; all of shape (batch, heads, tokens, channels)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.matmul(scores.softmax(-1), v)


class PlainAttention(TorchFunctionMode):
    """Within this context every unmasked `scaled_dot_product_attention` is `plain_attention`, in compiled code too."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention and not kwargs:
            return plain_attention(*args)
        return func(*args, **(kwargs or {}))
