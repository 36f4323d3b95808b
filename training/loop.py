"""The loop of every training: steps, learning rates, progress, and the state on disk that a stopped training needs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from training.optimizers import Optimizers, rate_share
from training.progress import Progress
from training.ranks import Ranks


class Training(ABC):
    """A training that can be stopped and continued; a subclass says what learns, from which loss."""

    name: ClassVar[str]  # of its files
    warm_up_steps: ClassVar[int]
    model: nn.Module
    optimizers: Optimizers
    average: AveragedModel | None = None  # moving average of the weights, if one is kept

    def __init__(self, steps: int, folder: Path, ranks: Ranks, seed: int) -> None:
        self.steps, self.folder, self.ranks, self.seed = steps, folder, ranks, seed
        self.step = 0
        self.samples = 0
        self.seconds = 0.0

    @abstractmethod
    def begin(self) -> None:
        """Compile, and seed what is drawn; called once, after the state is loaded.

        A state does not hold the samples at hand, so that others are drawn after every start.
        """

    @abstractmethod
    def learn(self) -> tuple[int, dict[str, float]]:
        """Compute the gradients of one step; returns (samples seen, values to report such as the loss)."""

    def run(self, save_every: int = 100) -> None:
        """Train to the last step, from where the folder's state stands."""
        self.load_state()
        self.begin()
        record = self.folder / f"{self.name}.jsonl" if self.ranks.is_first else None
        progress = Progress(self.name, self.steps, record)
        while self.step < self.steps:
            started = time.monotonic()
            self.model.zero_grad()
            samples, values = self.learn()
            self.optimizers.step(self.rate())
            if self.average:
                self.average.update_parameters(self.model)
            self.step += 1
            self.samples += samples
            self.seconds += time.monotonic() - started
            progress.report(self.step, samples, **values, rate=self.rate())
            if self.step % save_every == 0 or self.step == self.steps:
                self.save_state()

    def rate(self) -> float:
        """Learning rate of the coming step, as a share of the full one."""
        return rate_share(self.step, self.steps, self.warm_up_steps)

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def state(self) -> dict[str, Any]:
        average = {"average": self.average.state_dict()} if self.average else {}
        return average | {
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if self.average:
            self.average.load_state_dict(state["average"])

    def save_state(self) -> None:
        """Write the state; a kill meanwhile leaves the old one or the new one."""
        if not self.ranks.is_first:
            return
        part = self.state_file.with_suffix(".part")
        torch.save(self.state(), part)
        part.replace(self.state_file)

    def load_state(self) -> None:
        """Take up the folder's state, if there is one."""
        if self.state_file.exists():
            self.take_up(torch.load(self.state_file, map_location=self.ranks.device, weights_only=True))
