"""Fast learning: mixed precision where the processor has it, memory layouts, and on a CPU attention in plain products.

The kernels behind `scaled_dot_product_attention` are made for long sequences. On a CPU two batched products and a
softmax are faster for the few hundred tokens of a small image, forward and back.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch._inductor.config as inductor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kontext.device import cpu_computes_in_bfloat16

Network = TypeVar("Network", bound=nn.Module)


def computes_in_bfloat16(device: torch.device) -> bool:
    """False on a CPU without bfloat16 instructions, which learns faster in float32."""
    return device.type != "cpu" or cpu_computes_in_bfloat16()


def mixed_precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device))


def channels_last(network: Network, device: torch.device) -> Network:
    """A network of convolutions on a device, in the memory layout that computes fastest."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def spare_tiling_analysis(device: torch.device) -> None:
    """Turn off Inductor's analysis of how kernels read memory, on a GPU, for the whole process.

    torch 2.11 failed by it at the last single block, when that computes some rows only and with gradients: an assertion
    in `tiling_utils.get_pw_red_splits`, called by `analyze_memory_coalescing`. Tiles are chosen without it, as they
    were before that analysis existed.
    """
    if device.type == "cuda" and hasattr(inductor.triton, "coalesce_tiling_analysis"):
        inductor.triton.coalesce_tiling_analysis = False


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
