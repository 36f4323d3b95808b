"""Which attention kernel of torch is the fastest on this device, measured once for the model's own shape."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from kontext.config import TransformerConfig
from kontext.device import synchronize
from kontext.errors import RequestError

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TOKENS = 8704  # of a 1024x1024 edit with one reference: 4096 + 4096 + 512
REPETITIONS = 3

log = logging.getLogger(__name__)


def choose_backend(config: TransformerConfig, device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> str:
    """The attention kernel to use.

    Args:
        wanted: one of `BACKENDS`, which is then taken unmeasured, or "auto".
    Returns:
        One of `BACKENDS`, or "default" where torch has no choice to offer, on every device but CUDA.
    Raises:
        RequestError: there is no such kernel.
    """
    if wanted not in ("auto", *BACKENDS):
        raise RequestError(f"attention is {wanted!r}, expected auto, {', '.join(BACKENDS)}")
    if wanted != "auto" or device.type != "cuda":
        return "default" if wanted == "auto" else wanted
    shape = (1, config.num_heads, TOKENS, config.head_dim)
    # Not "math": at this size its table of scores alone takes gigabytes.
    seconds = measure_backends(torch.randn(shape, device=device, dtype=dtype), [*BACKENDS][:-1])
    chosen = min(seconds, key=lambda name: seconds[name], default="math")
    measured = " ".join(f"{name}={1e3 * value:.2f}ms" for name, value in seconds.items())
    log.info("attention_chosen backend=%s %s", chosen, measured)
    return chosen


def using_backend(name: str) -> AbstractContextManager[object]:
    """Within the context attention takes this kernel first, and another where it cannot."""
    if name == "default":
        return nullcontext()
    order = [BACKENDS[name], *(backend for other, backend in BACKENDS.items() if other != name)]
    return sdpa_kernel(order, set_priority=True)


@torch.inference_mode()
def measure_backends(x: Tensor, names: list[str]) -> dict[str, float]:
    """Seconds of one attention of x to itself, shape (batch, heads, length, head_dim), by each kernel that can."""
    seconds = {}
    for name in names:
        try:
            with warnings.catch_warnings(), sdpa_kernel(BACKENDS[name]):
                warnings.simplefilter("ignore")  # torch tells in warnings why a kernel cannot
                seconds[name] = _measure(x)
        except RuntimeError as error:
            log.debug("attention_unavailable backend=%s reason=%s", name, error)
    return seconds


def _measure(x: Tensor) -> float:
    best = float("inf")
    for _ in range(1 + REPETITIONS):  # the first one sets up; being the slowest it does not count
        synchronize(x.device)
        started = time.perf_counter()
        nn.functional.scaled_dot_product_attention(x, x, x)
        synchronize(x.device)
        best = min(best, time.perf_counter() - started)
    return best
