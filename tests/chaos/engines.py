"""Engines for workers that shall suffer: each makes its own process die, or lie about the time, at a known place.

A worker loads one by `DG_FLUX_KONTEXT_ENGINE=tests.chaos.engines:name`. The product has no hooks for this: the engine,
once it is inside the process, puts itself around the product's own functions.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from jobs.ledger import Ledger, Outbox
from kontext import Edited, EditRequest
from storage import Storage
from tests.chaos.versions import become_newer
from worker import callbacks
from worker.engines import Engine, load_engine
from worker.leases import Run
from worker.settings import Settings
from worker.standin import StandinEngine, step_seconds

BAD_CLOCK_SECONDS = 5 * 3600.0
CHUNK_BYTES = 40 * 2**20
"""As large as pictures and tensors are: more than 32 MiB go straight back to the system when they are freed."""

MOST_BYTES = 2 * 2**30
"""So much a job takes at most, should the limit that it is to meet be missing: the machine must live."""


class ChaosEngine(StandinEngine):
    """Knows more prompts: to leave, to crash, to die at the very end, to take all memory, and to paint "noise" that no
    format can make small.

    Of noise only the last corner has the colour of the seed.
    """

    def step(self, prompt: str) -> None:
        super().step(prompt)
        if prompt == "leave":
            os._exit(1)
        if prompt == "crash":
            ctypes.string_at(0)
        if prompt in GREEDY:
            GREEDY[prompt]()

    def run(self, request: EditRequest, on_step: Callable[[int, int], None]) -> Edited:
        edited = super().run(request, on_step)
        if request.prompt == "die late":  # its neighbour has been claimed by now
            die()
        if request.prompt != "noise":
            return edited
        width, height = edited.image.size
        noise = Image.frombytes("RGB", (width, height), Random(request.seed).randbytes(width * height * 3))
        noise.paste(edited.image.crop((0, 0, 1, 1)), (width - 1, height - 1))
        return replace(edited, image=noise)


def take_memory() -> None:
    """Take memory as Python code does, until there is none."""
    taken = []
    for _ in range(MOST_BYTES // CHUNK_BYTES):
        taken.append(b"x" * CHUNK_BYTES)
    raise RuntimeError(f"{MOST_BYTES} bytes were there for the taking: the test has set no limit")


def take_memory_blindly() -> None:
    """Take memory as a careless library does, which never looks whether it got any."""
    malloc, memset = ctypes.CDLL(None).malloc, ctypes.memset
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    for _ in range(MOST_BYTES // CHUNK_BYTES):
        memset(malloc(CHUNK_BYTES) or 0, 1, CHUNK_BYTES)
    raise RuntimeError(f"{MOST_BYTES} bytes were there for the taking: the test has set no limit")


GREEDY: dict[str, Callable[[], None]] = {"take memory": take_memory, "take memory blindly": take_memory_blindly}


def poor() -> None:
    """Limit what this process may still take: `CHAOS_MEMORY_BYTES` by itself, `CHAOS_CGROUP` by the kernel's killer."""
    if more := os.environ.get("CHAOS_MEMORY_BYTES"):
        status = Path("/proc/self/status").read_text()
        taken = 1024 * int(re.findall(r"VmData:\s+(\d+) kB", status)[0])
        resource.setrlimit(resource.RLIMIT_DATA, (taken + int(more), resource.RLIM_INFINITY))
    if cgroup := os.environ.get("CHAOS_CGROUP"):
        (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))


def steady(settings: Settings) -> StandinEngine:
    """An engine that does what the prompt says, in a worker that repeats failed callbacks at once."""
    repeat_callbacks_at_once()
    poor()
    return ChaosEngine(step_seconds())


def doomed(settings: Settings) -> StandinEngine:
    """An engine whose worker dies as the kernel would kill it, at the place that `CHAOS_DIES` names."""
    PLACES[os.environ["CHAOS_DIES"]]()
    return steady(settings)


def newer(settings: Settings) -> StandinEngine:
    """An engine in a worker of a version to come (`versions.py`)."""
    become_newer()
    return steady(settings)


def native(settings: Settings) -> Engine:
    """The real engine, in a worker that repeats failed callbacks at once; `CHAOS_*` make it poor, wrong or die."""
    repeat_callbacks_at_once()
    PLACES.get(os.environ.get("CHAOS_DIES", ""), lambda: None)()
    if os.environ.get("CHAOS_CLOCK") == "wrong":
        set_clock_ahead()
    engine = load_engine(settings.model_copy(update={"flux_kontext_engine": "native"}))
    warm_up = engine.warm_up
    setattr(engine, "warm_up", lambda: (warm_up(), poor()))  # noqa: B010 - it may take what it needs to start
    return engine


def repeat_callbacks_at_once() -> None:
    at_once = tuple(min(seconds, 1.0) for seconds in callbacks.DELAYS_SECONDS)
    setattr(callbacks, "DELAYS_SECONDS", at_once)  # noqa: B010 - a constant, as long as nobody does this


def wrong_clock(settings: Settings) -> StandinEngine:
    """An engine in a process whose clock is five hours ahead."""
    set_clock_ahead()
    return steady(settings)


def set_clock_ahead() -> None:
    right = time.time
    time.time = lambda: right() + BAD_CLOCK_SECONDS


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


PLACES: dict[str, Callable[[], None]] = {
    "after the pop, before the claim": lambda: die_before(Ledger, "claim_best"),
    "after the claim": lambda: die_after(Ledger, "claim_best"),
    "while fetching": lambda: die_before(Storage, "read"),
    "as the work begins": lambda: die_after(Ledger, "spend"),
    "while sampling": lambda: die_after(Run, "on_step"),
    "while uploading": lambda: die_before(os, "fsync"),  # the bytes are written, the name is not there yet
    "between upload and finish": lambda: die_before(Ledger, "finish"),
    "between finish and callback": lambda: die_after(Ledger, "finish"),
    "between callback and its note": lambda: die_before(Outbox, "settle"),
}
