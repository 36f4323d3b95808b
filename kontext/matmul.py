"""Choice of the library for float32 matrix products on a CPU: torch's default, or oneDNN if faster and as accurate.

By default torch calls MKL, which uses older instructions on processors not made by Intel. It calls oneDNN if bfloat16
is allowed inside a product; whether oneDNN then uses bfloat16 depends on the processor. If it does not, the permission
changes the library only. Speed and error are measured once per process: the libraries differ in last bits, so a second
model of the process has to get the same one, whatever else the machine is busy with.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

ROWS, CHANNELS = 256, 1024  # size of the measured product: 2 to 5 ms
REPETITIONS = 12  # of which the fastest counts: under load most are slowed down, in either library
EXACT = 1e-6  # relative error of float32; bfloat16 has 2e-3
WORTHWHILE = 1.2  # speed-up needed: large enough that noise does not decide

MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch's stubs do not know it

log = logging.getLogger(__name__)


@cache
def choose_products() -> str:
    """Choose the library for float32 products on this processor: "onednn", or "default" for torch's own choice.

    Measures at the first call only.
    """
    seconds = dict.fromkeys(("default", "onednn"), float("inf"))
    for _ in range(REPETITIONS):
        for name in seconds:
            seconds[name] = min(seconds[name], _measure(name))
    faster = seconds["default"] / seconds["onednn"]
    error = _error("onednn")
    chosen = "onednn" if faster >= WORTHWHILE and error < EXACT else "default"
    log.info("products_chosen library=%s onednn_speed=%.2f onednn_error=%.1e", chosen, faster, error)
    return chosen


@contextmanager
def using_products(name: str) -> Iterator[None]:
    """Context in which float32 products use this library, in the whole process."""
    if name == "default":
        yield
        return
    usual = MATMUL.fp32_precision
    MATMUL.fp32_precision = "bf16"
    try:
        yield
    finally:
        MATMUL.fp32_precision = usual


def onednn_multiplies() -> bool:
    """True inside `using_products("onednn")`."""
    return bool(MATMUL.fp32_precision == "bf16")


def _factors() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, CHANNELS, generator=draw), torch.randn(CHANNELS, CHANNELS, generator=draw)


@torch.inference_mode()
def _measure(name: str) -> float:
    x, y = _factors()
    with using_products(name):
        started = time.perf_counter()
        x @ y
        return time.perf_counter() - started


@torch.inference_mode()
def _error(name: str) -> float:
    x, y = _factors()
    with using_products(name):
        product = x @ y
    exact = x.double() @ y.double()
    return float((product - exact).norm() / exact.norm())
