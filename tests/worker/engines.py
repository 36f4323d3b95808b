"""Stand-in engines, one behaviour each; a worker loads one by `DG_FLUX_KONTEXT_ENGINE=tests.worker.engines:name`.

They do what the real engine promises to the worker - steps, `on_step`, a picture of the right size - and nothing else.
Their behaviour is set by `STANDIN_*` variables.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from PIL import Image

from jobs.settings import Settings
from kontext import Edited, EditRequest


class TimedEngine:
    """Takes a known time per step and returns a picture whose colour follows from the seed."""

    name = "stand-in"
    model_name = "stand-in"
    fingerprint = "sha256:0"
    approximations: tuple[str, ...] = ()
    device = "cpu"

    def __init__(self, step_seconds: float = 0.0) -> None:
        self.step_seconds = step_seconds

    def warm_up(self) -> None: ...

    def spare_memory(self) -> AbstractContextManager[object]:
        return nullcontext()

    def run(self, request: EditRequest, on_step: Callable[[int, int], None]) -> Edited:
        for step in range(1, request.num_inference_steps + 1):
            self.step(request.prompt)
            on_step(step, request.num_inference_steps)
        size = (request.width or request.images[0].width, request.height or request.images[0].height)
        colour = (request.seed % 256, request.seed // 256 % 256, 0)
        timings = {"encode": 0.0, "sample": 0.0, "decode": 0.0}
        return Edited(Image.new("RGB", size, colour), request.seed, timings)

    def step(self, prompt: str) -> None:
        time.sleep(self.step_seconds)


class PromptedEngine(TimedEngine):
    """Does to itself what the prompt names: raise, run out of memory, hang, break the device, die."""

    is_spared = False

    @contextmanager
    def spare_memory(self) -> Iterator[None]:
        self.is_spared = True
        yield
        self.is_spared = False

    def step(self, prompt: str) -> None:
        super().step(prompt)
        if prompt == "raise":
            raise RuntimeError("the engine raised")
        if prompt == "run out of memory" or (prompt == "need much memory" and not self.is_spared):
            raise out_of_memory()
        if prompt == "hang":
            time.sleep(3600)
        if prompt == "break the device":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if prompt == "die":
            os.kill(os.getpid(), signal.SIGKILL)


class FailingEngine(TimedEngine):
    """Fails whatever the job, as on a device that computes no more."""

    def step(self, prompt: str) -> None:
        raise RuntimeError("the engine raised")


def failing(settings: Settings) -> FailingEngine:
    return FailingEngine()


def out_of_memory() -> Exception:
    """What torch raises when a GPU has no memory left."""
    from torch import OutOfMemoryError

    return OutOfMemoryError("CUDA out of memory. Tried to allocate 374.00 MiB.")


def timed(settings: Settings) -> TimedEngine:
    return TimedEngine(_step_seconds())


def prompted(settings: Settings) -> PromptedEngine:
    return PromptedEngine(_step_seconds())


def _step_seconds() -> float:
    return float(os.environ.get("STANDIN_STEP_SECONDS", "0"))
