"""Host memory of exact size for streamed weights, which may be locked once it is filled.

Memory that CUDA allocates locked takes seconds per ten gigabytes before anything can be read into it, and torch rounds
its size up to a power of two and keeps it. Pages of our own are filled by the reading threads, then locked where they
are, and go back to the system with the last tensor that lies in them.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")

_pages: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # owners of pages by their address


def host_pages(nbytes: int) -> Tensor:
    """Allocate pages of their own for so many bytes; they take no memory before they are written to."""
    # Python shares by default, and the system makes no large pages of shared memory.
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not on every system
        memory.madvise(mmap.MADV_HUGEPAGE)  # a five-hundredth of the pages to be locked
    owner = (ctypes.c_ubyte * nbytes).from_buffer(memory)  # unlike the map it dies before the pages do
    tensor = torch.frombuffer(owner, dtype=torch.uint8)
    _pages[tensor.data_ptr()] = owner
    return tensor


def before_return(buffer: Tensor, act: Callable[[], object]) -> Callable[[], object]:
    """Call a function before the pages of `host_pages` go back to the system, or earlier by calling what is returned.

    Either way it is called once. The end of the process does not count.
    """
    last_call = weakref.finalize(_pages[buffer.data_ptr()], act)
    last_call.atexit = False
    return last_call


def available_host_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP) -> int | None:
    """Memory that this process may still take, caches of files counted as free; None where the system does not say.

    The least of the machine's and of the container's. Source: proc(5), Linux' documentation of cgroup v2.
    """
    available = [1024 * value for name, value in _numbers(meminfo) if name == "MemAvailable:"]
    with suppress(OSError, ValueError):  # "max" is no limit
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(_numbers(cgroup / "memory.stat"))
        cached = stat.get("file", 0) - stat.get("shmem", 0)  # shared memory counts as a file, and does not give way
        available.append(limit - used + cached)
    return min(available, default=None)


def _numbers(path: Path) -> Iterator[tuple[str, int]]:
    """Names and numbers of a file with one of each a line."""
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, number, *_ = line.split()
            yield name, int(number)
