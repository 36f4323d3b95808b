"""Quantisation of the blocks' wide linear layers to float8; the network stays the same.

Each output channel of a weight and each token of an input has its own scale, which maps its largest value to the
largest of e4m3 (four exponent bits, three mantissa bits); the product is scaled back. Modulation, embedders, norms,
attention and the residual stream keep their dtype: they take little time, and errors of modulation reach every token.
This is an approximation, which results report.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kontext.choices import PRECISIONS
from kontext.errors import DeviceError, RequestError
from kontext.layers import Modulation
from kontext.transformer import Transformer

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
SMALLEST_SCALE = 1e-12  # scale of a row of zeros
NEEDED_CAPABILITY = (9, 0)  # Hopper: earlier GPUs lack matrix products with a scale per row


class Float8Linear(nn.Module):
    """Linear layer, or several joined in one, with weights and inputs in float8."""

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
        """Compute only the output channels first to last (exclusive)."""
        rows, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        bias = None if self.bias is None else self.bias[first:last]
        product = _multiply_on_cuda if x.is_cuda else _multiply
        y = product(rows, scale, self.weight[first:last], self.weight_scale[first:last], bias, x.dtype)
        return y.reshape(*x.shape[:-1], last - first)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in float8, scale of each row in float32), shapes (rows, channels) and (rows, 1); x is their product."""
    wide = x.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    # The division may round above the largest value, where e4m3 has only NaN.
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def _multiply(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Multiply the quantised values in float32, on devices without float8 products."""
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
    """Convert a transformer to a precision.

    Returns:
        Names of the approximations, for results to report.
    Raises:
        RequestError: the precision is unknown or does not fit the dtype.
        DeviceError: the GPU has no float8 products with a scale per row.
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
