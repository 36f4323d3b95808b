"""The training of the autoencoder, on crops of drawn scenes.

Convolutions are trained by Muon (Jordan et al. 2024), as matrices with a row for every output, the rest by Adam. The
decoder alone can be trained further without changing the latents, so that the flow need not be trained again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.config import AutoencoderConfig, Resolution
from training.data.drawing import draw
from training.data.scenes import COLOURS, Finish, Scene, random_scene
from training.loop import Training
from training.optimizers import Optimizers
from training.plans import LARGE, AutoencoderPlan
from training.ranks import Ranks, channels_last
from training.speed import mixed_precision

SQUARE_WEIGHT, GRADIENT_WEIGHT, COARSE_WEIGHT, KL_WEIGHT = 0.5, 0.5, 1.0, 2e-4
COARSE = (4, 16)  # reductions at which images are compared as well: the overall colour of an area
CROPS_OF_A_SCENE = 4
SMALLEST_SIZE = 1e-4
CHANNELS = 3  # of an image; a convolution to so few is no matter for Muon
MUON_MOVES = 0.2  # root mean square of what torch's Muon changes at a rate of 1, set to Adam's


class AutoencoderTraining(Training):
    """The training of encoder and decoder, or of the decoder alone. On one process: it takes minutes."""

    name = "autoencoder"
    warm_up_steps = 50

    def __init__(
        self,
        autoencoder: Autoencoder,
        plan: AutoencoderPlan,
        folder: Path,
        ranks: Ranks,
        decoder_only: bool,
        seed: int = 0,
    ) -> None:
        super().__init__(plan.steps, folder, ranks, seed)
        self.model: Autoencoder = channels_last(autoencoder, ranks.device).requires_grad_(True)
        self.plan, self.decoder_only = plan, decoder_only
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        """Make the optimizers, and views of the convolutions' weights as matrices.

        Group normalisation takes the overall colour away unless what it norms is tiny, so the decoder learns tiny
        weights there, for which a usual rate is far too large. A tensor's rate is a share of its own size.
        """
        self.model.encoder.requires_grad_(not self.decoder_only)
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        kernels = [weights for weights in learning if weights.ndim == 4 and len(weights) > CHANNELS]
        self.matrices = [(weights, nn.Parameter(as_matrix(weights))) for weights in kernels]
        others = [weights for weights in learning if all(weights is not kernel for kernel in kernels)]
        rates = self.plan.decoder_rates if self.decoder_only else self.plan.rates
        self.optimizers = Optimizers(
            torch.optim.Muon(
                _groups([matrix for _, matrix in self.matrices], rates.kernels / MUON_MOVES),
                weight_decay=0.0,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.Adam(_groups(others, rates.others), betas=(0.9, 0.99)),
        )

    def begin(self) -> None:
        self.rng = Random(self.seed + self.step)
        self.generator = torch.Generator().manual_seed(self.seed + self.step)
        if self.plan.compiled:
            self.model.encoder.compile(dynamic=False)
            self.model.decoder.compile(dynamic=False)

    def learn(self) -> tuple[int, dict[str, float]]:
        images = crops(self.plan.samples, self.plan.side, self.rng, self.ranks.device)
        with mixed_precision(self.ranks.device):
            decoded, kl = _reconstructed(self.model, images, self.decoder_only, self.generator)
        loss = reconstruction_loss(decoded.float(), images) + KL_WEIGHT * kl
        torch.autograd.backward(loss)
        for weights, matrix in self.matrices:
            matrix.grad = None if weights.grad is None else as_matrix(weights.grad)
        return len(images), {"loss": float(loss.detach()), "psnr_db": _psnr(decoded, images)}

    def state(self) -> dict[str, Any]:
        return super().state() | {"decoder_only": self.decoder_only}

    def take_up(self, state: dict[str, Any]) -> None:
        # The state also says which parts were trained. The optimizers' matrices are made anew from its weights.
        self.decoder_only = state["decoder_only"]
        self.model.load_state_dict(state["model"])
        self._make_optimizers()
        super().take_up(state)


def as_matrix(weights: Tensor) -> Tensor:
    """The weights of a convolution, or their gradient, with a row for every output.

    A view if the weights lie channels last: a change of one changes the other.
    """
    return weights.detach().permute(0, 2, 3, 1).flatten(1)


def _groups(learning: list[nn.Parameter], rate: float) -> list[dict[str, Any]]:
    return [{"params": [weights], "full_rate": rate * size_of(weights)} for weights in learning]


@torch.no_grad()
def size_of(weights: Tensor) -> float:
    """Root mean square of a tensor, or SMALLEST_SIZE if it is still zero."""
    return max(float(weights.square().mean().sqrt()), SMALLEST_SIZE)


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
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
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


def crops(count: int, side: int, rng: Random, device: torch.device) -> Tensor:
    """Square cut-outs of drawn scenes as edits meet them, shape (count, 3, side, side)."""
    size = rng.choice(LARGE)
    scenes = [_any_scene(rng, size) for _ in range(-(-count // CROPS_OF_A_SCENE))]
    images = draw(scenes, size, device)
    places = [(rng.randrange(size[1] - side + 1), rng.randrange(size[0] - side + 1)) for _ in range(count)]
    cut = [images[i % len(scenes), :, y : y + side, x : x + side] for i, (y, x) in enumerate(places)]
    return torch.stack(cut).contiguous(memory_format=torch.channels_last)


def _any_scene(rng: Random, size: Resolution) -> Scene:
    # Many without the palette's colours: a decoder that has memorised the palette gets these wrong.
    finish: Finish = rng.choices(("as drawn", "grey", "inverted"), (50, 20, 30))[0]
    border = rng.choice(list(COLOURS)) if rng.random() < 0.15 else None
    return replace(random_scene(rng, size[0] / size[1]), finish=finish, border=border)


@torch.no_grad()
def latent_statistics(autoencoder: Autoencoder, rng: Random, device: torch.device) -> AutoencoderConfig:
    """The autoencoder's sizes with the scale and shift that bring its latents to mean 0 and variance 1."""
    means = [autoencoder.encoder(crops(8, 128, rng, device)).chunk(2, dim=1)[0] for _ in range(8)]
    latents = torch.cat(means).float()
    scale, shift = round(1 / float(latents.std()), 4), round(float(latents.mean()), 4)
    return replace(autoencoder.config, scale_factor=scale, shift_factor=shift)


def _psnr(decoded: Tensor, images: Tensor) -> float:
    error = (decoded.detach().float().clamp(-1, 1) - images).square().mean()  # of images whose range is 2
    return float(10 * torch.log10(4 / error))
