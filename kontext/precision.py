"""Precision as a value: the same network, the wide linear layers of its blocks in float8.

Each output channel of a weight and each token of an input is scaled so that its largest value becomes the largest of
e4m3 (four bits of exponent, three of mantissa), and the product is scaled back. Modulation, embedders, norms, attention
and the stream of tokens stay as they are: they cost little time, and errors of modulation reach every token.
An approximation: results say so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kontext.choices import PRECISIONS
from kontext.errors import DeviceError, RequestError
from kontext.layers import Modulation
from kontext.transformer import Transformer

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
SMALLEST_SCALE = 1e-12  # of a row of zeros
NEEDED_CAPABILITY = (9, 0)  # Hopper: earlier GPUs lack products with a scale per row


class Float8Linear(nn.Module):
    """A linear layer, or several joined in one, with weights and inputs in float8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scale = quantize_rows(linear.weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("weight_scale", scale)
        self.weight_scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, 0, len(self.weight))

    def part(self, x: Tensor, first: int, last: int) -> Tensor:
        """Channels first to last of the output, and no others computed."""
        rows, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        bias = None if self.bias is None else self.bias[first:last]
        product = _multiply_on_cuda if x.is_cuda else _multiply
        y = product(rows, scale, self.weight[first:last], self.weight_scale[first:last], bias, x.dtype)
        return y.reshape(*x.shape[:-1], last - first)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in float8, what to multiply each row with to have it back, float32), shapes (rows, channels) and (rows, 1)."""
    wide = x.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    # The division may round past the largest value, which has no neighbour but NaN.
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def _multiply(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The same values multiplied in float32, on devices without such a product."""
    y = (x.float() @ weight.float().t()) * x_scale * weight_scale.t()
    return (y if bias is None else y + bias).to(dtype)


def _multiply_on_cuda(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=True
    )


def set_precision(
    transformer: Transformer, precision: str, device: torch.device, dtype: torch.dtype
) -> tuple[str, ...]:
    """Bring a transformer to a precision; the names of what is approximated then.

    Raises:
        RequestError: there is no such precision, or it does not go with the dtype.
        DeviceError: the GPU cannot multiply so.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision is {precision!r}, expected {' or '.join(PRECISIONS)}")
    if precision == "bf16":
        return ()
    if dtype != torch.bfloat16:
        raise RequestError(f"precision fp8 goes with bfloat16, not {dtype}; leave dtype or precision out")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < NEEDED_CAPABILITY:
        raise DeviceError(f"{torch.cuda.get_device_name(device)} has no fp8 products by row; take precision bf16")
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        _replace_linears(block)
    return ("fp8 linears",)


def _replace_linears(block: nn.Module) -> None:
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, Modulation):
                setattr(parent, name, Float8Linear(child))
