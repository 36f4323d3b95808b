"""The autoencoder between images and latents; latents are 8 times smaller in both directions, with 16 channels.

Attributes carry the key names of the published checkpoints. Source: FLUX.1 reference code, modules/autoencoder.py;
the architecture is that of Esser et al. 2020 (VQGAN) and Rombach et al. 2021 (latent diffusion), without quantisation.
"""

# mypy: disable-error-code="no-any-return"
# To the type checker, calling an nn.Module returns Any; the annotations of `forward` state the type.

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn

from kontext.config import AutoencoderConfig

SWISH_CHUNK = 2**17  # values at once: half a megabyte in float32


class Autoencoder(nn.Module):
    """Encoder from images to latents of about unit variance, and decoder back.

    Attributes:
        channels_last: memory layout of images. Convolutions are fastest with channels last, and sum in another order.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels_last = False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, image: Tensor, encoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Encode an image to the mean of the posterior, without sampling.

        Args:
            image: -1 to 1, shape (batch, 3, height, width), sides multiples of 8.
            encoder: another way to run the encoder.
        Returns:
            Shape (batch, 16, height / 8, width / 8).
        """
        mean, _log_variance = (encoder or self.encoder)(self._laid_out(image)).chunk(2, dim=1)
        return self.config.scale_factor * (mean - self.config.shift_factor)

    def decode(self, latents: Tensor, decoder: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Decode latents to an image of about -1 to 1, shape (batch, 3, 8 * rows, 8 * columns).

        Args:
            decoder: another way to run the decoder.
        """
        x = self._laid_out(latents / self.config.scale_factor + self.config.shift_factor)
        return (decoder or self.decoder)(x)

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.is_cuda or self.channels_last else x


class Convolution(nn.Conv2d):
    """Convolution that on CUDA reads its weights channels last, which decides the layout of what it returns.

    Group norms there return channels first whatever they are given, and the compiler chooses channels last by itself
    only for images of a fixed size. Copying the weights at every call costs little (335 MB an image, derived) and keeps
    them as files and offload have them.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last) if x.is_cuda else self.weight
        return self._conv_forward(x, weight, self.bias)


class Encoder(nn.Module):
    """Convolutional encoder: levels from full resolution down, then the middle."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.level_channels
        self.conv_in = Convolution(config.in_channels, config.ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(finer, width, config.num_res_blocks, shrink=level < len(widths) - 1)
            for level, (finer, width) in enumerate(zip((config.ch, *widths[:-1]), widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = Convolution(widths[-1], 2 * config.z_channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(self.norm_out.activated(x))


class Decoder(nn.Module):
    """Convolutional decoder: the middle, then levels from the coarsest up.

    Level 0 is full resolution here too, as in the checkpoint's key names.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.level_channels
        self.conv_in = Convolution(config.z_channels, widths[-1], kernel_size=3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            DecoderLevel(coarser, width, config.num_res_blocks + 1, grow=level > 0)
            for level, (coarser, width) in enumerate(zip((*widths[1:], widths[-1]), widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = Convolution(widths[0], config.out_ch, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        # Under autocast the middle returns bfloat16, but the first residual sum of the levels needs the weights' dtype.
        x = x.to(self.conv_in.weight.dtype)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out.activated(x))


class EncoderLevel(nn.Module):
    """Residual blocks at one resolution, then a downsampling by 2."""

    def __init__(self, before: int, width: int, blocks: int, *, shrink: bool) -> None:
        super().__init__()
        self.block = _residual_blocks(before, width, blocks)
        self.downsample = Downsample(width) if shrink else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class DecoderLevel(nn.Module):
    """Residual blocks at one resolution, then an upsampling by 2."""

    def __init__(self, before: int, width: int, blocks: int, *, grow: bool) -> None:
        super().__init__()
        self.block = _residual_blocks(before, width, blocks)
        self.upsample = Upsample(width) if grow else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks around an attention over the whole image, at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = AttentionBlock(channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResidualBlock(nn.Module):
    """Norm, SiLU and 3x3 convolution, twice, with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = Convolution(in_channels, out_channels, kernel_size=3, padding=1)
        self.norm2 = _norm(out_channels)
        self.conv2 = Convolution(out_channels, out_channels, kernel_size=3, padding=1)
        widens = in_channels != out_channels
        self.nin_shortcut = Convolution(in_channels, out_channels, kernel_size=1) if widens else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1.activated(x))
        h = self.conv2(self.norm2.activated(h))
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return h.add_(shortcut) if h.dtype == shortcut.dtype else h + shortcut


class AttentionBlock(nn.Module):
    """Attention with one head between all pixels of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = Convolution(channels, channels, kernel_size=1)
        self.k = Convolution(channels, channels, kernel_size=1)
        self.v = Convolution(channels, channels, kernel_size=1)
        self.proj_out = Convolution(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        # Contiguous; otherwise attention falls back to a slow kernel.
        q, k, v = (rearrange(part(h), "b c h w -> b 1 (h w) c").contiguous() for part in (self.q, self.k, self.v))
        attn = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(attn, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        # Zero padding at the right and the bottom only, as in training.
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Convolution(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def swish(x: Tensor) -> Tensor:
    """SiLU, in place where possible: the caller must not read x afterwards."""
    if x.dtype == torch.float32 and _has_channels_last(x):
        return nn.functional.silu(x, inplace=True)
    # Two roundings as in the reference; the fused kernel with one changes a decode under autocast by 1 %.
    in_chunks = x.device.type == "cpu" and x.is_contiguous() and not torch.is_grad_enabled()
    if in_chunks and not torch.compiler.is_compiling():  # a graph would fix the number of chunks
        # In chunks that fit the CPU's cache: allocating memory for a large image takes longer than the arithmetic.
        for chunk in torch.split(x.view(-1), SWISH_CHUNK):
            chunk.mul_(torch.sigmoid(chunk))
        return x
    return x * torch.sigmoid(x)


class GroupNorm(nn.GroupNorm):
    """torch's group norm, with a more accurate path for float32 with channels last on a CPU.

    There torch sums all pixels one after the other, which loses two digits: an error of 1e-5 in an image of 384x384.
    """

    compiled_activated: Callable[..., Tensor] | None = None  # `normed_swish`, compiled

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_grad_enabled() or not _has_channels_last(x):
            return super().forward(x)
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view, (batch, height * width, channels)
        mean = self._over_groups(pixels.mean(dim=1))
        centred = pixels - mean
        variance = self._over_groups(centred.square_().mean(dim=1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normed = torch.addcmul(self.bias - mean * scale, pixels, scale, out=centred)
        return normed.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)

    def activated(self, x: Tensor) -> Tensor:
        """SiLU of the norm; where it is compiled, in one pass and in the dtype and layout that convolutions read."""
        if self.compiled_activated is None:
            return swish(self(x))
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        by_group = (self.num_groups, -1)
        weight, bias = (part.view(*by_group, 1, 1) for part in (self.weight, self.bias))
        with torch.autocast(device, enabled=False):  # another state of it would be another graph
            grouped = x.view(len(x), *by_group, *x.shape[2:])
            y = self.compiled_activated(grouped, weight, bias, self.eps, dtype)
        return y.flatten(3).permute(0, 3, 1, 2)

    def _over_groups(self, channels: Tensor) -> Tensor:
        """Replace each channel by the mean of its group, (batch, channels) to (batch, 1, channels)."""
        groups = channels.view(len(channels), self.num_groups, -1)
        return groups.mean(dim=2, keepdim=True).expand_as(groups).flatten(1).unsqueeze(1)


def normed_swish(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """SiLU of a group norm, computed in float32.

    Args:
        x: shape (batch, groups, channels of a group, height, width).
        weight, bias: shape (groups, channels of a group, 1, 1).
    Returns:
        Shape (batch, height, width, groups, channels of a group).
    """
    x = x.float()
    variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + eps) * weight + bias
    return (y * torch.sigmoid(y)).permute(0, 3, 4, 1, 2).to(dtype).contiguous()


def _has_channels_last(x: Tensor) -> bool:
    """Check for a layout with channels last that is not also contiguous; the compiler chooses layouts itself."""
    if torch.compiler.is_compiling():
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


def _residual_blocks(before: int, width: int, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(ResidualBlock(before if i == 0 else width, width) for i in range(blocks))
