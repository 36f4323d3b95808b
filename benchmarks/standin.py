"""An engine of known time, which writes down when it had its turn: what remains is the service's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from jobs.settings import Settings
from kontext import Edited, EditRequest

STEPS_PER_SECOND = 4.0
"""As the real model has it on a fast GPU; jobs choose their length by their number of steps."""


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

    def run(self, request: EditRequest, on_step: Callable[[int, int], None]) -> Edited:
        began_at = time.time()
        for step in range(1, request.num_inference_steps + 1):
            time.sleep(max(0.0, began_at + step * self._seconds_per_step - time.time()))
            on_step(step, request.num_inference_steps)
        with self._turns.open("a") as file:
            file.write(f"{began_at:.6f} {time.time():.6f}\n")
        return Edited(request.images[0], request.seed, {})


def load(settings: Settings) -> StandinEngine:
    return StandinEngine(Path(os.environ["STANDIN_TURNS"]), 1 / STEPS_PER_SECOND)


def load_instant(settings: Settings) -> StandinEngine:
    """An engine that takes no time."""
    return StandinEngine(Path(os.environ["STANDIN_TURNS"]), 0.0)
