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
from typing import Any, NamedTuple

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
PACKAGES = {"fa3": "flash_attn_interface", "fa2": "flash_attn.flash_attn_interface"}  # modules with `flash_attn_func`
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
    shape = (1, TOKENS, config.num_heads, config.head_dim)
    measured = measure_backends(torch.randn(shape, device=device, dtype=dtype), candidates())
    chosen = min(measured, key=lambda name: measured[name].later, default="math")
    told = (f"{name}={1e3 * time.later:.2f}ms,first={1e3 * time.first:.0f}ms" for name, time in measured.items())
    log.info("attention_chosen backend=%s %s", chosen, " ".join(told))
    return chosen


def candidates() -> list[str]:
    """List the kernels to measure, without "math": at the size of an edit its scores alone take gigabytes."""
    return [*(name for name in BACKENDS if name != "math"), *filter(_is_installed, PACKAGES)]


def _is_installed(package: str) -> bool:
    """Check for the module itself: FlashAttention 4 has the name of 2 and another module in it."""
    try:
        return find_spec(PACKAGES[package]) is not None
    except Exception as error:  # finding a module imports what it lies in, a package made for another machine perhaps
        log.debug("attention_unavailable backend=%s reason=%s", package, error)
        return False


def using_backend(name: str) -> AbstractContextManager[object]:
    """Context in which attention uses this kernel; torch falls back to another if one of its own cannot run."""
    return nullcontext() if name == "default" else _ChosenAttention(name)


class _ChosenAttention(TorchFunctionMode):
    """Context in which one kernel computes torch's attention, in compiled code too."""

    def __init__(self, kernel: str) -> None:
        super().__init__()
        self.kernel = kernel

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        is_plain = len(args) == 3 and not kwargs  # a mask is not the kernels'
        if func is nn.functional.scaled_dot_product_attention and is_plain:
            return attend(*(x.transpose(1, 2) for x in args), self.kernel).transpose(1, 2)
        return func(*args, **(kwargs or {}))


# A custom operator with the kernel's name in the graph. A context alone would not be in the key under which compiled
# code is kept on disk: a worker that chose another kernel would run the one of the worker before. It also fixes the
# layout, and keeps the compiler from tracing into a package.
@torch.library.custom_op("kontext::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    """Attention by one kernel.

    Args:
        q, k, v: shape (batch, length, heads, head_dim), bfloat16 on CUDA; there may be fewer queries than keys.
        kernel: one of `KERNELS`; torch falls back to another if one of its own cannot run.
    Returns:
        Same shape as q, contiguous.
    """
    return (_attend_by_package if kernel in PACKAGES else _attend_by_torch)(q, k, v, kernel).contiguous()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _attend_by_package(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    result = import_module(PACKAGES[kernel]).flash_attn_func(q, k, v)
    # The first releases of FlashAttention 3 also return the log-sum-exp of the softmax.
    x: Tensor = result[0] if isinstance(result, tuple) else result
    return x


def _attend_by_torch(q: Tensor, k: Tensor, v: Tensor, kernel: str) -> Tensor:
    order = [BACKENDS[kernel], *(backend for other, backend in BACKENDS.items() if other != kernel)]
    with sdpa_kernel(order, set_priority=True):
        # Not torch's function, which _ChosenAttention brings here. The result has the memory layout of the queries.
        x: Tensor = torch.ops.aten.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return x.transpose(1, 2)


class Measured(NamedTuple):
    """Seconds of an attention: the first call, which may make a plan for the shape, and the fastest later one."""

    first: float
    later: float


@torch.inference_mode()
def measure_backends(x: Tensor, names: Iterable[str]) -> dict[str, Measured]:
    """Time one self-attention of x, shape (batch, length, heads, head_dim), by every kernel that can run it."""
    measured = {}
    for name in names:
        try:
            with warnings.catch_warnings(), _only(name):
                warnings.simplefilter("ignore")  # torch's warnings give the reasons why a kernel cannot run
                first, *later = (_seconds(x) for _ in range(1 + REPETITIONS))
                measured[name] = Measured(first, min(later))
        except Exception as error:  # whatever a package raises: candidates may fail, loading must not
            log.debug("attention_unavailable backend=%s reason=%s", name, error)
    return measured


def _only(name: str) -> AbstractContextManager[object]:
    return using_backend(name) if name in PACKAGES else sdpa_kernel(BACKENDS[name])


def _seconds(x: Tensor) -> float:
    x = x.transpose(1, 2)
    synchronize(x.device)
    started = time.perf_counter()
    nn.functional.scaled_dot_product_attention(x, x, x)
    synchronize(x.device)
    return time.perf_counter() - started
