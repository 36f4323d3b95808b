"""Progress of a long run: a line now and then for people, and one JSON object per report in a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Progress of a run.

    Args:
        passed: share of the run that is over already.
    """

    def __init__(self, name: str, file: Path, passed: float = 0.0) -> None:
        self.name, self.file = name, file
        self.started = self.said = time.monotonic()
        self.first_passed = passed
        self.samples = 0
        self.recent: list[dict[str, float]] = []

    def count(self, samples: int) -> None:
        self.samples += samples

    def report(self, step: int, passed: float, **values: float) -> None:
        """Report a finished step, the share of the run that is over, and named values such as the loss."""
        self.recent.append(values)
        seconds = round(time.monotonic() - self.started, 1)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "seconds": seconds, "samples": self.samples, **values}) + "\n")
        if passed == 1 or time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self._say(step, passed)

    def _say(self, step: int, passed: float) -> None:
        self.said = time.monotonic()
        seconds = self.said - self.started
        means = {name: sum(values[name] for values in self.recent) / len(self.recent) for name in self.recent[0]}
        left = seconds / max(passed - self.first_passed, 1e-6) * (1 - passed)
        told = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        pace = f"{self.samples / seconds:.1f} samples/s, {left / 60:.1f} min left"
        sys.stderr.write(f"{self.name}: step {step}, {passed:.0%}, {told} ({pace})\n")
        self.recent.clear()
