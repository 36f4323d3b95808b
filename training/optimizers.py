"""Muon for matrices and Adam for the rest, at rates that rise, stay and fall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.speed import computes_in_bfloat16

CALM_SHARE = 0.5  # of a training, at its end, in which the rates fall
LAST_SHARE = 0.02  # of the full rates, at the very end
MOMENTUM = 0.95
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal, all matrices of one shape at once.

    Source: Jordan et al. 2024, with Nesterov's momentum. torch's own takes matrix after matrix: on a GPU the
    launching of its small products would take longer than they do.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        alike: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = defaultdict(list)
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is not None:
                    alike[weights.shape].append((weights, self._momentum(weights), group["lr"]))
        for shape, members in alike.items():
            matrices, momenta = [weights for weights, _, _ in members], [momentum for _, momentum, _ in members]
            gradients = [weights.grad for weights in matrices if weights.grad is not None]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            moves = orthogonal(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
            tall = max(1.0, shape[0] / shape[1]) ** 0.5
            for weights, move, (_, _, rate) in zip(matrices, moves.unbind(), members, strict=True):
                weights.add_(move, alpha=-rate * tall)

    def _momentum(self, weights: Tensor) -> Tensor:
        state = self.state[weights]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weights)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices of the same singular vectors whose singular values lie near 1, shape (batch, rows, columns)."""
    x: Tensor = matrices.bfloat16() if computes_in_bfloat16(matrices.device) else matrices
    x = x.mT if x.shape[1] > x.shape[2] else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    linear, cubic, quintic = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = linear * x + torch.baddbmm(cubic * gram, gram, gram, alpha=quintic) @ x
    return (x.mT if matrices.shape[1] > matrices.shape[2] else x).to(matrices.dtype)


@dataclass(frozen=True)
class Optimizers:
    """Both, taking their steps together; every group of parameters has a "full_rate", of which a step takes a share."""

    muon: Muon
    adam: torch.optim.Adam

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter((self.muon, self.adam))

    def step(self, share: float) -> None:
        for optimizer in self:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * share
            optimizer.step()


def rate_share(step: int, steps: int, warm_up_steps: int, passed: float) -> float:
    """Learning rate of a step as a share of the full one: up, level, down to nearly nothing.

    Args:
        step: counted from 0.
        steps: most steps of the training.
        warm_up_steps: at most; a fifth of a short training.
        passed: share of the training that is over, by steps or by time.
    """
    return min((step + 1) / min(warm_up_steps, steps / 5), 1.0, LAST_SHARE + (1 - passed) / CALM_SHARE)
