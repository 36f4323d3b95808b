"""The training of the transformer and both text encoders: flow matching on drawn edits.

x_t = (1 - t) * target + t * noise, and the network learns the velocity noise - target (rectified flow, Liu et al.
2022). Matrices inside the blocks are trained by Muon (Jordan et al. 2024), everything else by Adam; a
moving average of the weights is exported.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kontext.autoencoder import Autoencoder
from kontext.compile import compile_blocks
from kontext.config import ModelConfig
from kontext.networks import Networks
from kontext.text import TextEncoder
from training.lessons import Batch, Lessons, Orders
from training.loop import Training, average_of
from training.optimizers import Muon, Optimizers
from training.plans import FlowPlan
from training.speed import PlainAttention, channels_last, mixed_precision, spare_tiling_analysis

CHANGED_WEIGHT = 3.0  # of a token that the edit changes; with 12 an uncertain network changed what was to stay
EARLY = 0.5  # of the samples have t near 1, where the network must find the shape that is meant
GUIDANCE = (1.0, 5.0)
MOST_PHRASINGS = 3  # of an edit that is used more than once


class FlowModel(nn.Module):
    """The networks that learn, and their loss."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.transformer = networks.transformer
        self.t5 = networks.t5
        self.clip = networks.clip

    def forward(self, batch: Batch, t: Tensor, noise: Tensor, guidance: Tensor, phrasing: int = 0) -> Tensor:
        """The loss of every sample, shape (batch,)."""
        amount = t[:, None, None]
        velocity = self.velocity(batch, (1 - amount) * batch.target + amount * noise, t, guidance, phrasing)
        error = (velocity.float() - (noise - batch.target)).square().mean(-1)
        return (error * token_weights(batch.changed)).mean(-1)

    def velocity(self, batch: Batch, latents: Tensor, t: Tensor, guidance: Tensor, phrasing: int) -> Tensor:
        conditioning = self.transformer.condition(
            self.t5.network(input_ids=batch.t5_ids[phrasing]).last_hidden_state,
            self.clip.network(input_ids=batch.clip_ids[phrasing]).pooler_output,
            # An edit rounds both to bfloat16, so the network must learn to read them rounded.
            guidance=_rounded(guidance),
            timesteps=_rounded(t)[None],
            img_ids=batch.img_ids,
            references=batch.references,
        )
        velocity: Tensor = self.transformer(latents, 0, conditioning)
        return velocity


def _rounded(values: Tensor) -> Tensor:
    """Round to bfloat16, in the dtype that the network computes in."""
    rounded = values.bfloat16()
    return rounded if torch.is_autocast_enabled(values.device.type) else rounded.float()


def token_weights(changed: Tensor) -> Tensor:
    """Weights of the tokens in the loss, of mean 1 in every sample; shapes (batch, tokens)."""
    weights = torch.where(changed, CHANGED_WEIGHT, 1.0)
    return weights / weights.mean(1, keepdim=True)


def random_times(samples: int, target_tokens: int, generator: torch.Generator) -> Tensor:
    """Times to train at, shape (samples,): one part near noise, the rest logit-normal and moved as in the sampler.

    Source: Esser et al. 2024 for the logit-normal and the move. The part near noise is ours: a little later the noisy
    target itself shows the shape, and nothing is learnt about the sentence.
    """
    drawn, device = generator, generator.device
    early = 1 - 0.12 * torch.rand(samples, generator=drawn, device=device).square()
    shift = math.exp(0.5 + (1.15 - 0.5) * (target_tokens - 256) / (4096 - 256))
    spread = torch.sigmoid(torch.randn(samples, generator=drawn, device=device))
    moved = shift * spread / (1 + (shift - 1) * spread)
    return torch.where(torch.rand(samples, generator=drawn, device=device) < EARLY, early, moved)


class FlowTraining(Training):
    """The training of transformer and text encoders."""

    name = "flow"
    warm_up_steps = 40

    def __init__(
        self,
        networks: Networks,
        config: ModelConfig,
        plan: FlowPlan,
        folder: Path,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        super().__init__(plan.steps, plan.minutes, folder, device, seed)
        self.plan, self.config = plan, config
        self.encoder: Autoencoder = channels_last(networks.autoencoder, device)
        self.model: FlowModel = FlowModel(networks).to(device).requires_grad_(True)
        self.average, self.decay = average_of(self.model), plan.average
        self.optimizers = make_optimizers(self.model, plan)

    def begin(self) -> None:
        seed = hash((self.seed, self.step)) & 0x7FFFFFFF
        plan, encoders = self.plan, (self.model.t5, self.model.clip)
        t5, clip = (TextEncoder(nn.Identity(), encoder.tokenizer, encoder.output) for encoder in encoders)
        passed = torch.tensor(self.passed).share_memory_()  # type: ignore[no-untyped-call]
        phrasings = min(plan.uses, MOST_PHRASINGS)
        orders = Orders(plan.phases, (t5, clip), self.config, phrasings, seed, passed)
        self.lessons = Lessons(self.encoder, orders, plan.uses, plan.kept, plan.workers)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        if plan.compiled:
            spare_tiling_analysis(self.device)
            compile_blocks(self.model.transformer)

    def learn(self) -> tuple[int, dict[str, Tensor]]:
        batches = self.lessons.batches(self.passed)
        total = sum(len(batch.target) for batch in batches)
        loss = torch.zeros((), device=self.device)
        attention = PlainAttention() if self.device.type == "cpu" else nullcontext()
        for batch in batches:
            phrasing = self.lessons.rng.randrange(len(batch.t5_ids))
            with mixed_precision(self.device), attention:
                share = self.model(batch, *self._noise(batch), phrasing).sum() / total
            torch.autograd.backward(share)
            loss += share.detach()
        nn.utils.clip_grad_norm_(self.optimizers.adam.param_groups[0]["params"], 1.0)
        return total, {"loss": loss}

    def _noise(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(t, noise, guidance) for a batch."""
        samples, tokens, _ = batch.target.shape
        noise = torch.randn(batch.target.shape, generator=self.generator, device=self.device)
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(samples, generator=self.generator, device=self.device)
        return random_times(samples, tokens, self.generator), noise, guidance

    def averaged(self) -> FlowModel:
        """The networks that are exported."""
        return cast(FlowModel, self.average)


def make_optimizers(model: FlowModel, plan: FlowPlan) -> Optimizers:
    """Muon for the matrices of the blocks but modulation, Adam for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith(("transformer.double_blocks", "transformer.single_blocks"))
        is_matrix = parameter.ndim == 2 and inside and ".modulation." not in name and "_mod." not in name
        (matrices if is_matrix else others).append(parameter)
    return Optimizers(
        Muon([{"params": matrices, "full_rate": plan.matrix_rate}]),
        torch.optim.Adam([{"params": others, "full_rate": plan.other_rate}], betas=(0.9, 0.99), fused=True),
    )
