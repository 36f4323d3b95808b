"""An engine of known time, which writes down when it had its turn: what remains is the service's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from worker.settings import Settings

STEPS_PER_SECOND = 4.0
"""As the real model has it on a fast GPU; jobs choose their length by their number of steps."""


@dataclass(frozen=True)
class Painted:
    image: Image.Image
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class StandinEngine:
    """Sleeps for each step and returns the input picture."""

    name = model_name = "stand-in"
    fingerprint = "sha256:0"
    approximations: tuple[str, ...] = ()
    device = "none"

    def __init__(self, turns: Path, seconds_per_step: float) -> None:
        self._turns = turns
        self._seconds_per_step = seconds_per_step

    def warm_up(self) -> None: ...

    def spare_memory(self) -> AbstractContextManager[object]:
        return nullcontext()

    def run(
        self,
        images: Sequence[Image.Image],
        prompt: str,
        *,
        num_inference_steps: int,
        on_step: Callable[[int, int], None],
        **_: Any,
    ) -> Painted:
        began_at = time.time()
        for step in range(1, num_inference_steps + 1):
            time.sleep(max(0.0, began_at + step * self._seconds_per_step - time.time()))
            on_step(step, num_inference_steps)
        with self._turns.open("a") as file:
            file.write(f"{began_at:.6f} {time.time():.6f}\n")
        return Painted(images[0])


def load(settings: Settings) -> StandinEngine:
    return StandinEngine(Path(os.environ["STANDIN_TURNS"]), 1 / STEPS_PER_SECOND)


def load_instant(settings: Settings) -> StandinEngine:
    """An engine that takes no time."""
    return StandinEngine(Path(os.environ["STANDIN_TURNS"]), 0.0)
