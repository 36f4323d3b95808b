"""Muon for matrices and Adam for the rest, at rates that rise, stay and fall."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from training.speed import Float32Rounding

CALM_SHARE = 0.5  # of the steps, at the end, in which the rates fall
LAST_SHARE = 0.02  # of the full rates, at the very end


@dataclass(frozen=True)
class Optimizers:
    """Both, taking their steps together; every group of parameters has a "full_rate", of which a step takes a share."""

    muon: torch.optim.Muon
    adam: torch.optim.Adam

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter((self.muon, self.adam))

    def step(self, share: float) -> None:
        for optimizer in self:
            for group in optimizer.param_groups:
                group["lr"] = group["full_rate"] * share
            with Float32Rounding():
                optimizer.step()


def rate_share(step: int, steps: int, warm_up_steps: int) -> float:
    """Learning rate of a step as a share of the full one: up, level, down to nearly nothing.

    Args:
        step: counted from 0.
        warm_up_steps: at most; a fifth of a short training.
    """
    left = 1 - step / steps
    return min((step + 1) / min(warm_up_steps, steps / 5), 1.0, LAST_SHARE + left / CALM_SHARE)
