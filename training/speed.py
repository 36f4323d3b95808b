"""Fast learning on a CPU: mixed precision where the processor has it, and an attention in plain products.

The kernels behind `scaled_dot_product_attention` are made for long sequences. For the few hundred tokens of a small
image two batched products and a softmax are faster, forward and back (`python -m benchmarks.learning`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kontext.device import cpu_computes_in_bfloat16


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16, except on a CPU without bfloat16 instructions, which learns faster in float32."""
    is_slow = device.type == "cpu" and not cpu_computes_in_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=not is_slow)


class Float32Rounding(TorchFunctionMode):
    """Within this context `Tensor.bfloat16` is a float32 copy on a CPU without bfloat16 instructions.

    For torch's Muon, which orthogonalizes in bfloat16 whatever the device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.bfloat16 and args[0].device.type == "cpu" and not cpu_computes_in_bfloat16():
            return args[0].float().clone()
        return func(*args, **(kwargs or {}))


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as two products and a softmax; all of shape (batch, heads, tokens, channels)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return torch.matmul(scores.softmax(-1), v)


class PlainAttention(TorchFunctionMode):
    """Within this context every unmasked `scaled_dot_product_attention` is `plain_attention`, in compiled code too."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and not kwargs:
            return plain_attention(*args)
        return func(*args, **(kwargs or {}))
