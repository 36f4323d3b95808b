"""What producer and worker ask of the machine: its GPUs, and that a child process ends with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")

PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the signal the kernel sends a process when its parent dies."""


def visible_gpus(environment: Mapping[str, str], driver: Path | None = None) -> list[str]:
    """The GPUs that programs see, as `CUDA_VISIBLE_DEVICES` names them; asked of the driver, without torch."""
    limited = environment.get("CUDA_VISIBLE_DEVICES")
    if limited is not None:
        return [name.strip() for name in limited.split(",") if name.strip() not in ("", "-1")]
    folder = driver or DRIVER
    return [str(number) for number in range(len(list(folder.iterdir())))] if folder.is_dir() else []


def end_with_parent(number: signal.Signals) -> Callable[[], None] | None:
    """Code of a child between fork and exec: on Linux it gets the signal when the thread that started it ends.

    Elsewhere None: the child would go on and must be ended by hand.
    """
    if not sys.platform.startswith("linux"):
        return None
    # It must not allocate or import, so every name is resolved before.
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def ask_kernel() -> None:
        prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before we asked
            os._exit(1)

    return ask_kernel
