"""The autoencoder in bands of rows, for images whose feature maps do not fit the device as a whole.

Only what a layer reads and what it writes is there for the whole image; everything between is there for a band. A norm
needs statistics of the whole image: they are gathered band by band in a pass of their own and then applied, so that
nothing is approximated. Every convolution is computed once, apart from the rows where bands meet.
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kontext.autoencoder import Decoder, Downsample, Encoder, ResidualBlock, Upsample, swish
from kontext.config import AutoencoderConfig

# Peaks of encoding and decoding, in bytes for each pixel and channel of the base width. Plain, derived: a decoder's
# map of twice the width in bfloat16, and in float32 its norm, its sigmoid and their product. Compiled norms: 20.4
# with all else that an edit keeps, resident and within 8 GiB alike (H200, results of commit 2e8f994); four maps of
# the encoder, which computes in float32, are 16 of it. In bands, derived: two of these maps, and half as much for the
# rest.
PEAK_PLAIN, PEAK_COMPILED, PEAK_IN_BANDS = 28, 21, 12
BAND_BYTES = 256 * 2**20  # of a band's temporary tensors
TEMPORARY_BYTES = 16  # for each value of a band: its norm, its sigmoid, their product, and the convolution's copies


def whole_bytes(config: AutoencoderConfig, pixels: int, is_compiled: bool) -> int:
    """Memory that encoding or decoding an image as a whole takes, without weights."""
    return (PEAK_COMPILED if is_compiled else PEAK_PLAIN) * config.ch * pixels


def banded_bytes(config: AutoencoderConfig, pixels: int, is_compiled: bool) -> int:
    """Memory that it takes in bands; a small image is one band."""
    return min(whole_bytes(config, pixels, is_compiled), PEAK_IN_BANDS * config.ch * pixels + BAND_BYTES)


def has_compiled_norms(autoencoder: nn.Module) -> bool:
    """Report whether `compile_autoencoder` has compiled the norms of an autoencoder."""
    return any(getattr(part, "compiled_activated", None) is not None for part in autoencoder.modules())


def decode(decoder: Decoder, latents: Tensor, band_bytes: int = BAND_BYTES) -> Tensor:
    """What `decoder(latents)` is, up to the order of sums.

    Args:
        band_bytes: memory for what is between the feature maps.
    """
    x = decoder.mid(decoder.conv_in(latents)).to(decoder.conv_in.weight.dtype)
    level: Any
    for level in reversed(decoder.up):
        for block in level.block:
            x = _residual(block, x, band_bytes)
        if level.upsample is not None:
            x = _upsample(level.upsample, x, band_bytes)
    return _output(decoder, x, band_bytes)


def encode(encoder: Encoder, image: Tensor, band_bytes: int = BAND_BYTES) -> Tensor:
    """What `encoder(image)` is, up to the order of sums."""
    x = _in_bands(image, band_bytes, encoder.conv_in, encoder.conv_in.out_channels)
    level: Any
    for level in encoder.down:
        for block in level.block:
            x = _residual(block, x, band_bytes)
        if level.downsample is not None:
            x = _downsample(level.downsample, x, band_bytes)
    return _output(encoder, encoder.mid(x), band_bytes)


def _residual(block: ResidualBlock, x: Tensor, band_bytes: int) -> Tensor:
    """A residual block; its result takes the place of x or, where the width changes, of what is between."""
    first = _norm_of(block.norm1, x, band_bytes)
    h = _in_bands(x, band_bytes, lambda band: block.conv1(swish(first(band))))
    second = _norm_of(block.norm2, h, band_bytes)
    result = x if block.nin_shortcut is None else h
    above: Tensor | None = None  # the last row of the band before, which may be overwritten by now
    for begin, end in _bands(h, band_bytes):
        below = h[:, :, begin : min(end + 1, h.shape[2])]
        band = below if above is None else torch.cat((above, below), dim=2)
        skipped = 0 if above is None else 1
        above = h[:, :, end - 1 : end].clone()
        part = block.conv2(swish(second(band)))[:, :, skipped : skipped + end - begin]
        rows = x[:, :, begin:end]
        if block.nin_shortcut is None:
            rows.add_(part)
        else:
            h[:, :, begin:end] = part + block.nin_shortcut(rows)
    return result


def _upsample(layer: Upsample, x: Tensor, band_bytes: int) -> Tensor:
    return _in_bands(x, band_bytes // 4, layer, grow=2)


def _downsample(layer: Downsample, x: Tensor, band_bytes: int) -> Tensor:
    parts = []
    for begin, end in _bands(x, band_bytes, step=2):
        # The layer pads at the bottom; a band that goes on below reads a row more instead, and leaves the last result.
        band = x[:, :, begin : min(end + 2, x.shape[2])]
        parts.append(layer(band)[:, :, : (end - begin) // 2])
    return torch.cat(parts, dim=2)


def _output(network: Decoder | Encoder, x: Tensor, band_bytes: int) -> Tensor:
    norm = _norm_of(network.norm_out, x, band_bytes)
    return _in_bands(x, band_bytes, lambda band: network.conv_out(swish(norm(band))))


def _in_bands(
    x: Tensor, band_bytes: int, compute: Callable[[Tensor], Tensor], channels: int | None = None, grow: int = 1
) -> Tensor:
    """Compute rows from rows with one more on either side, which a convolution of 3x3 reads.

    Args:
        channels: of the widest tensor; None for that of x.
        grow: rows of the result for a row of x.
    """
    result: Tensor | None = None
    for begin, end in _bands(x, band_bytes, channels):
        first, last = max(0, begin - 1), min(end + 1, x.shape[2])
        part = compute(x[:, :, first:last])[:, :, (begin - first) * grow : (end - first) * grow]
        if result is None:
            batch, width, _, columns = part.shape
            layout = torch.channels_last if _has_channels_last(x) else torch.contiguous_format
            size = (batch, width, x.shape[2] * grow, columns)
            result = torch.empty(size, dtype=part.dtype, device=part.device, memory_format=layout)
        result[:, :, begin * grow : end * grow] = part
    assert result is not None
    return result


def _norm_of(norm: nn.GroupNorm, x: Tensor, band_bytes: int) -> Callable[[Tensor], Tensor]:
    """The norm as a function of a band: with mean and variance of the whole image, in float32."""
    groups, exact = norm.num_groups, _dtype_of_sums(x.device)
    count, mean = 0, x.new_zeros(len(x), groups, dtype=exact)
    squares = torch.zeros_like(mean)
    for begin, end in _bands(x, band_bytes):
        band = x[:, :, begin:end].float()
        band = band.view(len(x), groups, -1, *band.shape[2:])
        variance, mean_of_band = torch.var_mean(band, dim=(2, 3, 4), correction=0)
        added = band[0, 0].numel()
        # Chan, Golub and LeVeque 1979: the sums of squares of two parts, each about its own mean, as one.
        distance = mean_of_band.to(exact) - mean
        squares = squares + variance.to(exact) * added + distance.square() * (count * added / (count + added))
        mean = mean + distance * (added / (count + added))
        count += added
    deviation = torch.sqrt(squares / count + norm.eps)
    per_group = norm.weight.to(exact).view(1, groups, -1)
    scale = per_group / deviation.unsqueeze(2)
    shift = norm.bias.to(exact).view(1, groups, -1) - mean.unsqueeze(2) * scale
    scale, shift = (part.flatten(1)[:, :, None, None].float() for part in (scale, shift))
    return lambda band: torch.addcmul(shift, band.float(), scale)


def _dtype_of_sums(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPU lacks


def _bands(x: Tensor, band_bytes: int, channels: int | None = None, step: int = 1) -> Iterator[tuple[int, int]]:
    """First row and last (exclusive) of each band; the first is a multiple of `step`."""
    batch, width, height, columns = x.shape
    rows = band_bytes // (batch * (channels or width) * columns * TEMPORARY_BYTES) // step * step
    rows = max(step, rows)
    for begin in range(0, height, rows):
        yield begin, min(begin + rows, height)


def _has_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
