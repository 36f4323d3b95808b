"""One process per GPU, or per core, started by torchrun: rank, synchronisation, gathered results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Item = TypeVar("Item")
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Ranks:
    """A process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have arrived."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextmanager
    def hold_gradients(self, learner: nn.Module, until: bool) -> Iterator[None]:
        """Exchange no gradients within the context unless `until`: once per step is enough."""
        held = isinstance(learner, DistributedDataParallel) and not until
        # torch does not annotate no_sync.
        with cast(Any, learner).no_sync() if held else nullcontext():
            yield


@contextmanager
def all_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; one alone needs nothing."""
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if kind == "cuda" else kind)
    if size == 1:
        yield Ranks(rank, size, chosen)
        return
    torch.distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(rank, size, chosen)
    finally:
        torch.distributed.destroy_process_group()


def gathered_mean(value: float, ranks: Ranks) -> float:
    """The mean of a number over all processes."""
    if ranks.size == 1:
        return value
    total = torch.tensor(value, device=ranks.device)
    torch.distributed.all_reduce(total)
    return float(total) / ranks.size


def gathered(values: list[Item], ranks: Ranks) -> list[Item]:
    """The values of all processes, in the first one; elsewhere one's own."""
    if ranks.size == 1:
        return values
    lists: list[list[Item]] = [[] for _ in range(ranks.size)]
    torch.distributed.gather_object(values, lists if ranks.is_first else None)
    return [value for part in lists for value in part] if ranks.is_first else values


def channels_last(network: Network, device: torch.device) -> Network:
    """A network of convolutions on a device, in the memory layout that computes fastest."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
