"""The training of the transformer and both text encoders: flow matching on drawn edits.

x_t = (1 - t) * target + t * noise, and the network learns the velocity noise - target (rectified flow, Liu et al.
2022). Matrices inside the blocks are trained by Muon (Jordan et al. 2024), everything else by Adam; a
moving average of the weights is exported.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from kontext.autoencoder import Autoencoder
from kontext.compile import compile_blocks
from kontext.config import ModelConfig
from kontext.networks import Networks
from training.lessons import Batch, Bucket, Pools
from training.loop import Training
from training.optimizers import Optimizers
from training.plans import FlowPlan
from training.ranks import Ranks, channels_last, gathered_mean
from training.speed import PlainAttention, mixed_precision

CHANGED_WEIGHT = 3.0  # of a token that the edit changes; with 12 an uncertain network changed what was to stay
EARLY = 0.5  # of the samples have t near 1, where the network must find the shape that is meant
GUIDANCE = (1.0, 5.0)


class FlowModel(nn.Module):
    """The networks that learn, and their loss."""

    def __init__(self, networks: Networks, config: ModelConfig) -> None:
        super().__init__()
        self.transformer = networks.transformer
        self.t5 = networks.t5
        self.clip = networks.clip
        self.config = config

    def forward(self, batch: Batch, t: Tensor, noise: Tensor, guidance: Tensor) -> Tensor:
        """The loss of every sample, shape (batch,)."""
        amount = t[:, None, None]
        velocity = self.velocity(batch, (1 - amount) * batch.target + amount * noise, t, guidance)
        error = (velocity.float() - (noise - batch.target)).square().mean(-1)
        return (error * token_weights(batch.changed)).mean(-1)

    def velocity(self, batch: Batch, latents: Tensor, t: Tensor, guidance: Tensor) -> Tensor:
        device = latents.device
        t5_ids = self.t5.token_ids(batch.prompts, self.config.max_sequence_length).to(device)
        clip_ids = self.clip.token_ids(batch.prompts, self.config.clip_max_length).to(device)
        conditioning = self.transformer.condition(
            self.t5.network(input_ids=t5_ids).last_hidden_state,
            self.clip.network(input_ids=clip_ids).pooler_output,
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
    early = 1 - 0.12 * torch.rand(samples, generator=generator).square()
    shift = math.exp(0.5 + (1.15 - 0.5) * (target_tokens - 256) / (4096 - 256))
    spread = torch.sigmoid(torch.randn(samples, generator=generator))
    moved = shift * spread / (1 + (shift - 1) * spread)
    return torch.where(torch.rand(samples, generator=generator) < EARLY, early, moved)


class FlowTraining(Training):
    """The training of transformer and text encoders."""

    name = "flow"
    warm_up_steps = 40

    def __init__(
        self, networks: Networks, config: ModelConfig, plan: FlowPlan, folder: Path, ranks: Ranks, seed: int = 0
    ) -> None:
        super().__init__(plan.steps, folder, ranks, seed)
        self.plan = plan
        self.encoder: Autoencoder = channels_last(networks.autoencoder, ranks.device)
        self.model: FlowModel = FlowModel(networks, config).to(ranks.device).requires_grad_(True)
        self.average: AveragedModel = AveragedModel(self.model, avg_fn=partial(moving_average, decay=plan.average))
        self.optimizers = make_optimizers(self.model, plan)

    def begin(self) -> None:
        # Other edits for every process too.
        self.pools = Pools(self.encoder, self._seed(1), self.plan.uses, self.plan.lessons)
        self.generator = torch.Generator().manual_seed(self._seed(2))
        if self.plan.compiled:
            # A block is smaller than what the exchange of gradients would cut a graph into, and cutting fails here.
            torch._dynamo.config.optimize_ddp = False
            compile_blocks(self.model.transformer)
        self.learner = DistributedDataParallel(self.model) if self.ranks.size > 1 else self.model

    def _seed(self, purpose: int) -> int:
        return hash((self.seed, purpose, self.step, self.ranks.rank)) & 0x7FFFFFFF

    def learn(self) -> tuple[int, dict[str, float]]:
        buckets = self._phase_buckets()
        total = sum(bucket.samples for bucket in buckets)
        loss_sum = 0.0
        attention = PlainAttention() if self.ranks.device.type == "cpu" else nullcontext()
        for i, bucket in enumerate(buckets):
            batch = self.pools.batch(bucket)
            with self.ranks.hold_gradients(self.learner, until=i == len(buckets) - 1):
                with mixed_precision(self.ranks.device), attention:
                    losses = self.learner(batch, *self._noise(batch))
                torch.autograd.backward(losses.sum() / total)
            loss_sum += float(losses.detach().sum())
        nn.utils.clip_grad_norm_(self.optimizers.adam.param_groups[0]["params"], 1.0)
        return total * self.ranks.size, {"loss": gathered_mean(loss_sum / total, self.ranks)}

    def _noise(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(t, noise, guidance) for a batch; drawn on the CPU, so that a seed means the same everywhere."""
        samples, tokens, _ = batch.target.shape
        t = random_times(samples, tokens, self.generator)
        noise = torch.randn(batch.target.shape, generator=self.generator)
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(samples, generator=self.generator)
        device = batch.target.device
        return t.to(device), noise.to(device), guidance.to(device)

    def _phase_buckets(self) -> tuple[Bucket, ...]:
        passed = self.step / self.plan.steps
        for phase in self.plan.phases[:-1]:
            if passed < phase.share:
                return phase.buckets
            passed -= phase.share
        return self.plan.phases[-1].buckets

    def averaged(self) -> FlowModel:
        """The networks that are exported."""
        return cast(FlowModel, self.average.module)


def make_optimizers(model: FlowModel, plan: FlowPlan) -> Optimizers:
    """Muon for the matrices of the blocks but modulation, Adam for the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = name.startswith(("transformer.double_blocks", "transformer.single_blocks"))
        is_matrix = parameter.ndim == 2 and inside and ".modulation." not in name and "_mod." not in name
        (matrices if is_matrix else others).append(parameter)
    return Optimizers(
        torch.optim.Muon([{"params": matrices, "full_rate": plan.matrix_rate}], weight_decay=0.0),
        torch.optim.Adam([{"params": others, "full_rate": plan.other_rate}], betas=(0.9, 0.99)),
    )


def moving_average(average: Tensor, current: Tensor, count: Tensor | int, decay: float) -> Tensor:
    """The next exponential moving average; short at first, to forget the beginning soon."""
    return torch.lerp(current, average, min(decay, (1 + int(count)) / (10 + int(count))))
