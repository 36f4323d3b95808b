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
from kontext.weights.reading import Reader
from kontext.weights.stored import PlainRows, ScaledRows, Weight, rows_of

LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
SMALLEST_SCALE = 1e-12  # scale of a row of zeros
NEEDED_CAPABILITY = (8, 9)  # Ada: earlier GPUs have no float8 products


class Float8Linear(nn.Module):
    """Linear layer, or several joined in one, with weights and inputs in float8.

    Args:
        linear: layer whose bias it takes.
        quantised: weight in float8 and its scales, float32, shape (rows, 1); None to quantise the layer's weight.
    """

    def __init__(self, linear: nn.Linear, quantised: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__()
        weight, scale = quantised or quantize_rows(linear.weight)
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
        y: Tensor = multiply(rows, scale, self.weight[first:last], self.weight_scale[first:last], bias, x.dtype)
        return y.reshape(*x.shape[:-1], last - first)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x in float8, scale of each row in float32), shapes (rows, channels) and (rows, 1); x is their product."""
    wide = x.float()
    scale = (wide.abs().amax(dim=1, keepdim=True) / LARGEST).clamp(min=SMALLEST_SCALE)
    # The division may round above the largest value, where e4m3 has only NaN.
    return (wide / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


# A custom operator: Inductor (torch 2.11) fails on the product of a part of a layer, whose bias begins inside another.
@torch.library.custom_op("kontext::multiply_float8", mutates_args=())
def multiply(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The product of quantised tokens and a quantised weight.

    Args:
        x, x_scale: as from `quantize_rows`, (tokens, channels) and (tokens, 1).
        weight, weight_scale: likewise, (outputs, channels) and (outputs, 1).
        bias: shape (outputs,).
        dtype: of the result, shape (tokens, outputs).
    """
    if x.is_cuda:
        return torch._scaled_mm(
            x, weight.t(), scale_a=x_scale, scale_b=weight_scale.t(), bias=bias, out_dtype=dtype, use_fast_accum=True
        )
    # In float32, on devices without float8 products.
    y = (x.float() @ weight.float().t()) * x_scale * weight_scale.t()
    return (y if bias is None else y + bias).to(dtype)


@multiply.register_fake
def _(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty(len(x), len(weight), dtype=dtype)


def set_precision(
    transformer: Transformer, precision: str, device: torch.device, dtype: torch.dtype, reader: Reader
) -> tuple[str, ...]:
    """Convert a transformer to a precision.

    Args:
        reader: of the weights. Those that their file holds in float8 are taken as they are, others are quantised when
            they are read.
    Returns:
        Names of the approximations, for results to report.
    Raises:
        RequestError: the precision is unknown or does not fit the dtype.
        DeviceError: the GPU has no float8 products.
    """
    if precision not in PRECISIONS:
        raise RequestError(f"precision is {precision!r}, expected {' or '.join(PRECISIONS)}")
    if precision == "bf16":
        return ()
    if dtype != torch.bfloat16:
        raise RequestError(f"precision fp8 goes with bfloat16, not {dtype}; leave dtype or precision out")
    check_float8(device)
    for block in (*transformer.double_blocks, *transformer.single_blocks):
        _replace_linears(block, reader)
    return ("fp8 linears",)


def check_float8(device: torch.device) -> None:
    """Check that a GPU has float8 products; other devices multiply the same values in float32.

    Raises:
        DeviceError: it has none.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < NEEDED_CAPABILITY:
        raise DeviceError(
            f"{torch.cuda.get_device_name(device)} has no fp8 products (Ada, Hopper and later have); "
            "take precision bf16"
        )


def _replace_linears(block: nn.Module, reader: Reader) -> None:
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and not isinstance(parent, Modulation):
                setattr(parent, name, _float8_linear(child, reader))


def _float8_linear(linear: nn.Linear, reader: Reader) -> Float8Linear:
    quantised = stored_in_float8(reader.stored(linear.weight))
    if quantised is not None:
        reader.forget(linear.weight)
        return Float8Linear(linear, quantised)
    rows, scale = torch.empty(linear.weight.shape, dtype=torch.float8_e4m3fn), torch.empty(len(linear.weight), 1)
    reader.derive(linear.weight, (rows, scale), quantize_rows)
    return Float8Linear(linear, (rows, scale))


def stored_in_float8(weight: Weight) -> tuple[Tensor, Tensor] | None:
    """(weight in e4m3, scales of its rows) as a file holds them; None when it holds something else."""
    parts = rows_of(weight)
    rows = parts[0]
    if len(parts) > 1 or not isinstance(rows, PlainRows | ScaledRows) or rows.tensor.dtype != torch.float8_e4m3fn:
        return None
    scale = rows.scale if isinstance(rows, ScaledRows) else torch.ones(1, 1)
    return rows.tensor, scale.expand(len(rows), 1).contiguous()
