"""A stand-in engine: no model, known time, faults on demand. `DG_FLUX_KONTEXT_ENGINE=standin` takes it.

It keeps the engine's promises - steps, `on_step`, an image of the right size - so that everything round the model can
be tried, tested and measured without one: an integration, a deployment, the service's own overhead.

The environment sets it up:

| variable | default | meaning |
|---|---|---|
| `STANDIN_STEP_SECONDS` | 0 | time of each step |
| `STANDIN_FAULT` | none | a fault from `FAULTS` for every job; otherwise a job whose prompt is a fault's name has it |
| `STANDIN_TURNS` | none | file to which each edit adds a line with its begin and end, in seconds since 1970 |
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from jobs.errors import SettingsError
from kontext import Edited, EditRequest
from kontext.sizes import asked_size
from worker.settings import Settings

SQUARE_OF_SHAPES = 1024 * 1024
"""Pixels of an image of which only the shape is asked for, as with the 12B model."""


class StandinEngine:
    """Takes a known time per step and paints an image whose colour follows from the seed.

    Args:
        step_seconds: time of each step.
        fault: the name of a fault for every edit; None leaves it to the prompt.
        turns: a file that gets a line for each edit.
    """

    name = "stand-in"
    model_name = "stand-in"
    fingerprint = "sha256:0"
    approximations: tuple[str, ...] = ()
    device = "cpu"

    def __init__(self, step_seconds: float = 0.0, fault: str | None = None, turns: Path | None = None) -> None:
        self.is_spared = False
        self._is_loaded = False
        self._step_seconds = step_seconds
        self._fault = fault
        self._turns = turns

    def warm_up(self) -> None:
        """Do nothing, or have the fault that every edit has."""
        if self._fault and self._is_loaded:
            self.step(self._fault)
        self._is_loaded = True  # a device that breaks has worked before

    @contextmanager
    def spare_memory(self) -> Iterator[None]:
        """Within the context the prompt "need much memory" has enough."""
        self.is_spared = True
        try:
            yield
        finally:
            self.is_spared = False

    def run(self, request: EditRequest, on_step: Callable[[int, int], None]) -> Edited:
        """Sleep for each step, then paint."""
        began_at, started = time.time(), time.monotonic()
        for step in range(1, request.num_inference_steps + 1):
            # By the clock, or what each pause is late by would add up.
            time.sleep(max(0.0, started + step * self._step_seconds - time.monotonic()))
            self.step(self._fault or request.prompt)
            on_step(step, request.num_inference_steps)
        timings = {"encode": 0.0, "sample": time.monotonic() - started, "decode": 0.0}
        if self._turns:
            with self._turns.open("a") as file:
                file.write(f"{began_at:.6f} {time.time():.6f}\n")
        size = asked_size(request, SQUARE_OF_SHAPES) or request.images[0].size
        return Edited(Image.new("RGB", size, colour_of(request.seed)), request.seed, timings)

    def step(self, prompt: str) -> None:
        """Have the fault that the prompt names, if it names one."""
        if prompt in FAULTS:
            FAULTS[prompt](self)


def colour_of(seed: int) -> tuple[int, int, int]:
    """The colour that an edit with this seed has."""
    return seed % 256, seed // 256 % 256, 0


def out_of_memory() -> Exception:
    """Torch's exception for a GPU that has no memory left."""
    from torch import OutOfMemoryError

    return OutOfMemoryError("CUDA out of memory. Tried to allocate 374.00 MiB.")


def _fail(engine: StandinEngine) -> None:
    raise RuntimeError("the engine raised")


def _run_out_of_memory(engine: StandinEngine) -> None:
    raise out_of_memory()


def _need_much_memory(engine: StandinEngine) -> None:
    if not engine.is_spared:
        raise out_of_memory()


def _hang(engine: StandinEngine) -> None:
    time.sleep(3600)


def _break_the_device(engine: StandinEngine) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _die(engine: StandinEngine) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS: dict[str, Callable[[StandinEngine], None]] = {
    "raise": _fail,
    "run out of memory": _run_out_of_memory,
    "need much memory": _need_much_memory,  # works when repeated with offload
    "hang": _hang,
    "break the device": _break_the_device,
    "die": _die,
}
"""Faults by name; each happens in the edit's first step."""


def load_standin(settings: Settings) -> StandinEngine:
    """The stand-in engine as the `STANDIN_*` variables set it up.

    Raises:
        SettingsError: a variable has a value that cannot be used.
    """
    fault, turns = os.environ.get("STANDIN_FAULT") or None, os.environ.get("STANDIN_TURNS")
    if fault is not None and fault not in FAULTS:
        raise SettingsError(f"STANDIN_FAULT={fault!r}: expected one of {', '.join(FAULTS)}")
    return StandinEngine(step_seconds(), fault, Path(turns) if turns else None)


def step_seconds() -> float:
    """Read `STANDIN_STEP_SECONDS`.

    Raises:
        SettingsError: it is no number of seconds.
    """
    given = os.environ.get("STANDIN_STEP_SECONDS", "0")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise SettingsError(f"STANDIN_STEP_SECONDS={given!r}: expected a number of seconds, 0 or more")
    return seconds
