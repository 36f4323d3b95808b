"""The training of the autoencoder: on crops of drawn scenes, at the end on whole images.

Convolutions are trained by Muon (Jordan et al. 2024), as matrices with a row for every output, the rest by Adam. The
decoder alone can be trained further without changing the latents, so that the flow need not be trained again.

Group normalisation takes the overall colour of a flat area away. A network can smuggle it past by one huge value
somewhere, which is seen as a coloured spot (Karras et al. 2020, section 2, on instance normalisation); such values are
penalised where they enter a norm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder, Decoder, Encoder, ResidualBlock, swish
from kontext.config import AutoencoderConfig, Resolution
from training.data.drawing import draw
from training.data.scenes import COLOURS, Finish, Scene, random_scene
from training.loop import Training
from training.optimizers import Muon, Optimizers
from training.plans import LARGE, AutoencoderPlan
from training.speed import channels_last, mixed_precision

SQUARE_WEIGHT, GRADIENT_WEIGHT, COARSE_WEIGHT, KL_WEIGHT, SPIKE_WEIGHT = 0.5, 0.5, 1.0, 2e-4, 1e-3
COARSE = (4, 16)  # reductions at which images are compared as well: the overall colour of an area
CROPS_OF_A_SCENE = 4
CHANNELS = 3  # of an image; a convolution to so few is no matter for Muon
SPIKE, GROUPS = 16.0, 32  # times the root mean square of a group; groups of a norm


class AutoencoderTraining(Training):
    """The training of encoder and decoder, or of the decoder alone."""

    name = "autoencoder"
    warm_up_steps = 50

    def __init__(
        self,
        autoencoder: Autoencoder,
        plan: AutoencoderPlan,
        folder: Path,
        device: torch.device,
        decoder_only: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(plan.steps, plan.minutes, folder, device, seed)
        self.model: Autoencoder = channels_last(autoencoder, device).requires_grad_(True)
        self.plan, self.decoder_only = plan, decoder_only
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        """Make the optimizers, and views of the convolutions' weights as matrices.

        A tensor's rate is a share of its own size: a trained decoder can hold tiny weights, for which a usual rate is
        far too large. Muon changes a matrix by its rate over the root of its columns, as root mean square.
        """
        self.model.encoder.requires_grad_(not self.decoder_only)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        kernels = [weights for weights in learning if weights.ndim == 4 and len(weights) > CHANNELS]
        self.matrices = [(weights, nn.Parameter(as_matrix(weights))) for weights in kernels]
        others = [weights for weights in learning if all(weights is not kernel for kernel in kernels)]
        rates = self.plan.decoder_rates if self.decoder_only else self.plan.rates
        columns = [matrix.shape[1] for _, matrix in self.matrices]
        self.optimizers = Optimizers(
            Muon(
                [
                    {"params": [matrix], "full_rate": rates.kernels * size_of(matrix, rates.least_size) * count**0.5}
                    for (_, matrix), count in zip(self.matrices, columns, strict=True)
                ]
            ),
            torch.optim.Adam(
                [
                    {"params": [weights], "full_rate": rates.others * size_of(weights, rates.least_size)}
                    for weights in others
                ],
                betas=(0.9, 0.99),
                fused=True,
            ),
        )

    def begin(self) -> None:
        self.rng = Random(self.seed + self.step)
        self.generator = torch.Generator(self.device).manual_seed(self.seed + self.step)
        self.spikes: list[Tensor] = []
        # One graph for all blocks of a width, at any resolution.
        run = torch.compile(watched_block, dynamic=True) if self.plan.compiled else watched_block
        for module in (self.model.decoder if self.decoder_only else self.model).modules():
            if isinstance(module, ResidualBlock):
                setattr(module, "forward", partial(self._watch, partial(run, module)))  # noqa: B010 - a method, to mypy
            elif isinstance(module, (Encoder, Decoder)):
                module.norm_out.register_forward_pre_hook(lambda _, inputs: self.spikes.append(spike(*inputs)))

    def _watch(self, run: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
        x, spikes = run(x)
        self.spikes.append(spikes)
        return x

    def learn(self) -> tuple[int, dict[str, Tensor]]:
        whole = self.passed >= 1 - self.plan.whole_share
        side, samples = (None, self.plan.whole_samples) if whole else (self.plan.side, self.plan.samples)
        images = crops(samples, side, self.rng, self.device)
        self.spikes.clear()
        with mixed_precision(self.device):
            decoded, kl = _reconstructed(self.model, images, self.decoder_only, self.generator)
        spikes = torch.stack(self.spikes).mean()
        loss = reconstruction_loss(decoded.float(), images) + KL_WEIGHT * kl + SPIKE_WEIGHT * spikes
        torch.autograd.backward(loss)
        for weights, matrix in self.matrices:
            matrix.grad = None if weights.grad is None else as_matrix(weights.grad)
        return len(images), {"loss": loss.detach(), "psnr_db": psnr(decoded, images), "spikes": spikes.detach()}

    def state(self) -> dict[str, Any]:
        return super().state() | {"decoder_only": self.decoder_only}

    def take_up(self, state: dict[str, Any]) -> None:
        # The state also says which parts were trained. The optimizers' matrices are made anew from its weights.
        self.decoder_only = state["decoder_only"]
        self.model.load_state_dict(state["model"])
        self._make_optimizers()
        super().take_up(state)


def watched_block(block: ResidualBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output, and the spikes of what enters its norms."""
    h = block.conv1(swish(block.norm1(x)))
    shortcut = x if block.nin_shortcut is None else block.nin_shortcut(x)
    return shortcut + block.conv2(swish(block.norm2(h))), spike(x) + spike(h)


def spike(x: Tensor) -> Tensor:
    """How far the largest values of a norm's groups exceed SPIKE times their size, on average; x: (batch, ...)."""
    grouped = x.float().reshape(len(x), GROUPS, -1, *x.shape[2:])
    size = grouped.square().mean((2, 3, 4)).clamp(min=1e-12).sqrt()
    return nn.functional.relu(grouped.abs().amax((2, 3, 4)) / size - SPIKE).mean()


def as_matrix(weights: Tensor) -> Tensor:
    """The weights of a convolution, or their gradient, with a row for every output.

    A view if the weights lie channels last: a change of one changes the other.
    """
    return weights.detach().permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def size_of(weights: Tensor, least: float) -> float:
    """Root mean square of a tensor, or `least` if it is smaller."""
    return max(float(weights.square().mean().sqrt()), least)


def _reconstructed(
    autoencoder: Autoencoder, images: Tensor, decoder_only: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(images after the autoencoder, KL divergence of the posterior from a unit normal)."""
    if decoder_only:
        with torch.no_grad():
            mean, _ = autoencoder.encoder(images).chunk(2, dim=1)
        return autoencoder.decoder(mean), mean.new_zeros(())
    mean, log_variance = autoencoder.encoder(images).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return autoencoder.decoder(mean + (0.5 * log_variance).exp() * noise), kl


def reconstruction_loss(decoded: Tensor, images: Tensor) -> Tensor:
    """Distance of two batches of images: pixels, their gradients, and areas of several sizes."""
    difference = decoded - images
    loss = difference.abs().mean() + SQUARE_WEIGHT * difference.square().mean()
    for axis in (2, 3):
        loss = loss + GRADIENT_WEIGHT / 2 * difference.diff(dim=axis).abs().mean()
    for reduction in COARSE:
        loss = loss + COARSE_WEIGHT / len(COARSE) * nn.functional.avg_pool2d(difference, reduction).abs().mean()
    return loss


def crops(count: int, side: int | None, rng: Random, device: torch.device) -> Tensor:
    """Square cut-outs of drawn scenes as edits meet them, shape (count, 3, side, side); whole images without a side."""
    size = rng.choice(LARGE)
    scenes = [any_scene(rng, size) for _ in range(-(-count // (CROPS_OF_A_SCENE if side else 1)))]
    images = draw(scenes, size, device)
    if side:
        places = [(rng.randrange(size[1] - side + 1), rng.randrange(size[0] - side + 1)) for _ in range(count)]
        cut = [images[i % len(scenes), :, y : y + side, x : x + side] for i, (y, x) in enumerate(places)]
        images = torch.stack(cut)
    return images.contiguous(memory_format=torch.channels_last)


def any_scene(rng: Random, size: Resolution) -> Scene:
    # Many without the palette's colours: a decoder that has memorised the palette gets these wrong.
    finish: Finish = rng.choices(("as drawn", "grey", "inverted"), (50, 20, 30))[0]
    border = rng.choice(list(COLOURS)) if rng.random() < 0.15 else None
    return replace(random_scene(rng, size[0] / size[1]), finish=finish, border=border)


@torch.no_grad()
def latent_statistics(autoencoder: Autoencoder, device: torch.device) -> AutoencoderConfig:
    """The autoencoder's sizes with the scale and shift that bring its latents to mean 0 and variance 1."""
    rng = Random(0)
    means = [autoencoder.encoder(crops(8, 128, rng, device)).chunk(2, dim=1)[0] for _ in range(8)]
    latents = torch.cat(means).float()
    scale, shift = round(1 / float(latents.std()), 3), round(float(latents.mean()), 3)
    return replace(autoencoder.config, scale_factor=scale, shift_factor=shift)


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images of -1 to 1."""
    return 10 * torch.log10(4 / (decoded.detach().float().clamp(-1, 1) - images).square().mean())
