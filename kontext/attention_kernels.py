"""Choice of the fastest attention kernel on this device, measured once with the model's own shape.

Candidates are torch's kernels and, if installed, the FlashAttention packages, whose newest releases torch does not
include. All are called through torch's own function, so attention is written once.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from kontext.config import TransformerConfig
from kontext.device import synchronize
from kontext.errors import RequestError

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
PACKAGES = {"fa3": "flash_attn_interface", "fa2": "flash_attn"}
KERNELS = (*BACKENDS, *PACKAGES)
TOKENS = 8704  # of a 1024x1024 edit with one reference: 4096 + 4096 + 512
REPETITIONS = 3

log = logging.getLogger(__name__)


def choose_backend(config: TransformerConfig, device: torch.device, dtype: torch.dtype, wanted: str = "auto") -> str:
    """Choose the attention kernel.

    Args:
        wanted: one of `KERNELS`, used without a measurement, or "auto" for the fastest.
    Returns:
        One of `KERNELS`, or "default" on devices other than CUDA, where torch offers no choice.
    Raises:
        RequestError: there is no such kernel, or its package is not installed.
    """
    if wanted not in ("auto", *KERNELS):
        raise RequestError(f"attention is {wanted!r}, expected auto, {', '.join(KERNELS)}")
    if wanted in PACKAGES and not _is_installed(wanted):
        raise RequestError(f"attention is {wanted!r}, but there is no package {PACKAGES[wanted]}; install it, or auto")
    if wanted != "auto" or device.type != "cuda":
        return "default" if wanted == "auto" else wanted
    shape = (1, config.num_heads, TOKENS, config.head_dim)
    seconds = measure_backends(torch.randn(shape, device=device, dtype=dtype), candidates())
    chosen = min(seconds, key=lambda name: seconds[name], default="math")
    measured = " ".join(f"{name}={1e3 * value:.2f}ms" for name, value in seconds.items())
    log.info("attention_chosen backend=%s %s", chosen, measured)
    return chosen


def candidates() -> list[str]:
    """List the kernels to measure, without "math": at the size of an edit its scores alone take gigabytes."""
    return [*(name for name in BACKENDS if name != "math"), *filter(_is_installed, PACKAGES)]


def _is_installed(package: str) -> bool:
    return find_spec(PACKAGES[package]) is not None


def using_backend(name: str) -> AbstractContextManager[object]:
    """Context in which attention uses this kernel; torch falls back to another if one of its own cannot run."""
    if name == "default":
        return nullcontext()
    if name in PACKAGES:
        return _PackageAttention(PACKAGES[name])
    order = [BACKENDS[name], *(backend for other, backend in BACKENDS.items() if other != name)]
    return sdpa_kernel(order, set_priority=True)


class _PackageAttention(TorchFunctionMode):
    """Context in which a package computes torch's attention."""

    def __init__(self, package: str) -> None:
        super().__init__()
        self.package = package

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return flash_attention(*args, self.package)
        return func(*args, **(kwargs or {}))


# A custom operator, so that the compiler does not trace into the package.
@torch.library.custom_op("kontext::flash_attention", mutates_args=())
def flash_attention(q: Tensor, k: Tensor, v: Tensor, package: str) -> Tensor:
    """Attention by a FlashAttention package, which expects (batch, length, heads, head_dim).

    Args:
        q, k, v: shape (batch, heads, length, head_dim), bfloat16 on CUDA; there may be fewer queries than keys.
        package: module with `flash_attn_func`.
    Returns:
        Same shape as q.
    """
    result = import_module(package).flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
    # The first releases of FlashAttention 3 also return the log-sum-exp of the softmax.
    x: Tensor = result[0] if isinstance(result, tuple) else result
    return x.contiguous().transpose(1, 2)  # copies nothing, but makes sure of the layout that register_fake declares


@flash_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, package: str) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


@torch.inference_mode()
def measure_backends(x: Tensor, names: Iterable[str]) -> dict[str, float]:
    """Seconds of one self-attention of x, shape (batch, heads, length, head_dim), per kernel that can run it."""
    seconds = {}
    for name in names:
        try:
            with warnings.catch_warnings(), _only(name):
                warnings.simplefilter("ignore")  # torch's warnings give the reasons why a kernel cannot run
                seconds[name] = _measure(x)
        except (RuntimeError, ImportError) as error:
            log.debug("attention_unavailable backend=%s reason=%s", name, error)
    return seconds


def _only(name: str) -> AbstractContextManager[object]:
    return using_backend(name) if name in PACKAGES else sdpa_kernel(BACKENDS[name])


def _measure(x: Tensor) -> float:
    best = float("inf")
    for _ in range(1 + REPETITIONS):  # the first call includes setup; as the slowest it does not count
        synchronize(x.device)
        started = time.perf_counter()
        nn.functional.scaled_dot_product_attention(x, x, x)
        synchronize(x.device)
        best = min(best, time.perf_counter() - started)
    return best
