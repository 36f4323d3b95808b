"""Where the values of weights come from when the weights get their places."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor

Fill = Callable[[Tensor, Tensor], None]  # (target, source): write the source's values to the target


class Values(Protocol):
    """Where the values of weights come from once the weights have their places."""

    def fill(self, target: Tensor, source: Tensor) -> None:
        """Write a weight's values to its new memory, in `reading` at the latest.

        Args:
            source: the weight before it was placed.
        """

    def when_filled(self, buffer: Tensor, act: Callable[[], object]) -> None:
        """Call a function when the weights that lie in a host buffer have their values, or soon before."""

    def clear(self) -> None:
        """Forget what is recorded and not read yet, as the places that a failed `hold` has given."""

    def reading(self) -> AbstractContextManager[None]:
        """Context at whose end all weights have their values."""


class AtOnce(Values):
    """Values that are in memory and are copied at once."""

    def fill(self, target: Tensor, source: Tensor) -> None:
        fill_now(target, source)

    def when_filled(self, buffer: Tensor, act: Callable[[], object]) -> None:
        act()

    def clear(self) -> None:
        """Do nothing: all is copied already."""

    def reading(self) -> AbstractContextManager[None]:
        return nullcontext()


AT_ONCE = AtOnce()


def fill_now(target: Tensor, source: Tensor) -> None:
    """Copy the values at once, unless target and source are the same tensor."""
    if target is not source:
        target.copy_(source)
