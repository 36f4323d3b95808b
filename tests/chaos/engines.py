"""Engines for workers that shall suffer: each makes its own process die, or lie about the time, at a known place.

A worker loads one by `DG_FLUX_KONTEXT_ENGINE=tests.chaos.engines:name`. The product has no hooks for this: the engine,
once it is inside the process, puts itself around the product's own functions.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import wraps
from random import Random
from typing import Any

from PIL import Image

from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.storage import Storage
from tests.worker.engines import Painted, PromptedEngine, TimedEngine
from worker import callbacks

BAD_CLOCK_SECONDS = 5 * 3600.0


class ChaosEngine(PromptedEngine):
    """Knows more prompts: to leave, to crash, and to paint "noise" that no format can make small.

    Of noise only the last corner has the colour of the seed.
    """

    def step(self, prompt: str) -> None:
        super().step(prompt)
        if prompt == "leave":
            os._exit(1)
        if prompt == "crash":
            ctypes.string_at(0)

    def run(self, images: Sequence[Image.Image], prompt: str, **options: Any) -> Painted:
        painted = super().run(images, prompt, **options)
        if prompt != "noise":
            return painted
        width, height = painted.image.size
        noise = Image.frombytes("RGB", (width, height), Random(options["seed"]).randbytes(width * height * 3))
        noise.paste(painted.image.crop((0, 0, 1, 1)), (width - 1, height - 1))
        return Painted(noise)


def steady(settings: Settings) -> TimedEngine:
    """An engine that does what the prompt says, in a worker that repeats failed callbacks at once."""
    at_once = tuple(min(seconds, 1.0) for seconds in callbacks.DELAYS_SECONDS)
    setattr(callbacks, "DELAYS_SECONDS", at_once)  # noqa: B010 - a constant, as long as nobody does this
    return ChaosEngine(float(os.environ["STANDIN_STEP_SECONDS"]))


def doomed(settings: Settings) -> TimedEngine:
    """An engine whose worker dies as the kernel would kill it, at the place that `CHAOS_DIES` names."""
    engine = steady(settings)
    PLACES[os.environ["CHAOS_DIES"]](engine)
    return engine


def wrong_clock(settings: Settings) -> TimedEngine:
    """An engine in a process whose clock is five hours ahead."""
    right = time.time
    time.time = lambda: right() + BAD_CLOCK_SECONDS
    return steady(settings)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(owner: Any, name: str) -> None:
    """Die where `owner.name` is called, before it does anything."""
    setattr(owner, name, lambda *_, **__: die())


def die_after(owner: Any, name: str) -> None:
    """Die when `owner.name` has done its work, before its caller knows."""
    work = getattr(owner, name)

    @wraps(work)
    def last(*arguments: Any, **options: Any) -> None:
        work(*arguments, **options)
        die()

    setattr(owner, name, last)


PLACES: dict[str, Callable[[TimedEngine], None]] = {
    "after the pop, before the claim": lambda _: die_before(Ledger, "claim"),
    "after the claim": lambda _: die_after(Ledger, "claim"),
    "while fetching": lambda _: die_before(Storage, "read"),
    "while sampling": lambda engine: die_after(engine, "step"),
    "while uploading": lambda _: die_before(os, "fsync"),  # the bytes are written, the name is not there yet
    "between upload and finish": lambda _: die_before(Ledger, "finish"),
    "between finish and callback": lambda _: die_after(Ledger, "finish"),
    "between callback and its note": lambda _: die_before(Ledger, "settle_callback"),
}
