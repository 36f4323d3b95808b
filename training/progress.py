"""Progress of a long run: a line now and then for people, and one JSON object per step in a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Progress of `steps` steps. Without a file nothing is reported: one of several processes reports."""

    def __init__(self, name: str, steps: int, file: Path | None) -> None:
        self.name, self.steps, self.file = name, steps, file
        self.started = self.said = time.monotonic()
        self.first_step: int | None = None
        self.samples = 0
        self.recent: list[dict[str, float]] = []

    def report(self, step: int, samples: int, **values: float) -> None:
        """Report a finished step, its samples, and named values such as the loss."""
        if self.file is None:
            return
        self.first_step = step - 1 if self.first_step is None else self.first_step
        self.samples += samples
        self.recent.append(values)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "samples": samples, **values}) + "\n")
        if step == self.steps or time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self._say(step)

    def _say(self, step: int) -> None:
        self.said = time.monotonic()
        seconds = self.said - self.started
        means = {name: sum(values[name] for values in self.recent) / len(self.recent) for name in self.recent[0]}
        left = seconds / (step - (self.first_step or 0)) * (self.steps - step)
        told = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        pace = f"{self.samples / seconds:.1f} samples/s, {left / 60:.0f} min left"
        sys.stderr.write(f"{self.name} {step}/{self.steps} {told} ({pace})\n")
        self.recent.clear()
