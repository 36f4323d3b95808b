"""The loop of every training: steps, learning rates, progress, and the state on disk that a stopped training needs.

A training ends after its steps or its minutes, whichever come first; learning rates and phases follow the share that
has passed, so that they arrive at their end in time whatever the machine's speed.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from training.optimizers import Optimizers, rate_share
from training.progress import Progress

SECONDS_BETWEEN_STATES = 75.0
SECONDS_BETWEEN_VALUES = 1.0  # to read a value, the host waits for a GPU


class Training(ABC):
    """A training that can be stopped and continued; a subclass says what learns, from which loss."""

    name: ClassVar[str]  # of its files
    warm_up_steps: ClassVar[int]
    model: nn.Module
    optimizers: Optimizers
    average: nn.Module | None = None  # moving average of the model, if one is kept
    decay: float = 0.0  # of the average

    def __init__(self, steps: int, minutes: float, folder: Path, device: torch.device, seed: int) -> None:
        self.steps, self.limit_seconds = steps, 60 * minutes
        self.folder, self.device, self.seed = folder, device, seed
        self.step = 0
        self.samples = 0
        self.seconds = 0.0

    @abstractmethod
    def begin(self) -> None:
        """Compile, and seed what is drawn; called once, after the state is loaded.

        A state does not hold the samples at hand, so that others are drawn after every start.
        """

    @abstractmethod
    def learn(self) -> tuple[int, dict[str, Tensor]]:
        """Compute the gradients of one step; returns (samples seen, values to report such as the loss)."""

    @property
    def passed(self) -> float:
        """Share of the training that is over, from 0 to 1."""
        return min(max(self.step / self.steps, self.seconds / self.limit_seconds), 1.0)

    def run(self, saved: Callable[[], None] = lambda: None) -> None:
        """Train to the end, from where the folder's state stands; calls `saved` after every state but the last."""
        self.load_state()
        if self.passed == 1:
            return
        self.begin()
        progress = Progress(self.name, self.folder / f"{self.name}.jsonl", self.passed)
        told = kept = started = time.monotonic()
        before = self.seconds
        while self.passed < 1:
            samples, values = self._take_step()
            now = time.monotonic()
            self.seconds = before + now - started
            self.samples += samples
            due = self.passed == 1 or now - told > SECONDS_BETWEEN_VALUES
            progress.count(samples)
            if due:
                told = now
                progress.report(self.step, self.passed, **{name: float(value) for name, value in values.items()})
            if self.passed < 1 and now - kept > SECONDS_BETWEEN_STATES:
                self.save_state()
                saved()
                kept = time.monotonic()
        self.save_state()

    def _take_step(self) -> tuple[int, dict[str, Tensor]]:
        self.model.zero_grad()
        samples, values = self.learn()
        self.optimizers.step(rate_share(self.step, self.steps, self.warm_up_steps, self.passed))
        self.step += 1
        if self.average:
            move_average(self.average, self.model, self.step, self.decay)
        return samples, values

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
        part = self.state_file.with_suffix(".part")
        torch.save(self.state(), part)
        part.replace(self.state_file)

    def load_state(self) -> None:
        """Take up the folder's state, if there is one."""
        if self.state_file.exists():
            self.take_up(torch.load(self.state_file, map_location=self.device, weights_only=True))


def average_of(model: nn.Module) -> nn.Module:
    """A copy that will follow the model as its moving average."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def move_average(average: nn.Module, model: nn.Module, count: int, decay: float) -> None:
    """Move the exponential average after so many steps; it is short at first, to forget the beginning soon."""
    weight = 1 - min(decay, (1 + count) / (10 + count))
    torch._foreach_lerp_(list(average.parameters()), [weights.data for weights in model.parameters()], weight)
