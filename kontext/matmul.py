"""Which library multiplies float32 matrices on a CPU: torch's own choice, or oneDNN where that is faster and as exact.

torch gives float32 products to MKL, which on other makers' processors than Intel's keeps to older instructions. It
gives them to oneDNN when bfloat16 is allowed inside of a product; whether oneDNN then uses bfloat16 depends on the
processor. Where it does not, the permission changes nothing but the library. Speed and error are measured once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

ROWS, CHANNELS = 256, 1024  # of the product that is measured: 2 to 5 ms
REPETITIONS = 5
EXACT = 1e-6  # relative error of float32; that of bfloat16 is 2e-3
WORTHWHILE = 1.2  # times as fast: far from where noise would choose now one and now the other

MATMUL: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # torch's stubs do not know it

log = logging.getLogger(__name__)


def choose_products() -> str:
    """What multiplies float32 matrices best on this processor: "onednn", or "default" for whatever torch takes."""
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
    """Within the context float32 matrices are multiplied so, in the whole process."""
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
    """Whether this is within `using_products("onednn")`."""
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
