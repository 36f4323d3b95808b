"""First-block cache: a step that hardly differs from an earlier one reuses what that step's later blocks added.

    computed:  img --> first block --> img' --> all other blocks --> x      kept: img' - img, and x - img'
    skipped:   img --> first block --> img' ----------------------------> img' + (x - img') of the last computed step

The first block is computed at every step. Where its residual img' - img is close to that of the last computed step,
the residual of all other blocks is taken to be close, too. Only rows of the target count: nothing reads the last
block's other rows.

An approximation. Sources: Cheng 2025, ParaAttention, "first block cache"; warm-up and the limit of steps skipped in a
row after cache-dit, "DBCache" with one block (F1B0); the idea of a relative change that decides after Liu et al.
2024, "Timestep Embedding Tells: It's Time to Cache" (TeaCache).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kontext.errors import RequestError

if TYPE_CHECKING:  # settings read a `StepCache` where torch is not wanted
    from torch import Tensor

METHOD = "first-block"
EXPECTED = f"expected off, {METHOD}, or {METHOD}:THRESHOLD with a threshold from 0 to 1, such as {METHOD}:0.08"


@dataclass(frozen=True)
class StepCache:
    """When a step may be skipped.

    Args:
        threshold: a step is skipped if the first block's residual differs by less from that of the last computed step,
            as the sum of absolute differences relative to the sum of absolute values; 0 skips none. 0.08 is the value
            published most often for FLUX.1 [dev].
        warm_up_steps: steps at the start that are computed, since they lay out the image.
        last_steps: steps at the end that are computed, since they decide the details.
        most_skipped: steps in a row that may be skipped.
    Raises:
        RequestError: a value cannot work.
    """

    threshold: float = 0.08
    warm_up_steps: int = 4
    last_steps: int = 2
    most_skipped: int = 3

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold) or self.threshold < 0:
            raise RequestError(f"threshold of the step cache is {self.threshold}, expected 0 or more")
        for name in ("warm_up_steps", "last_steps", "most_skipped"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} of the step cache is {getattr(self, name)}, expected 0 or more")

    def __str__(self) -> str:
        """Name of the approximation, with all that decides."""
        return (
            f"first-block cache, threshold {self.threshold:g}, first {self.warm_up_steps} and last {self.last_steps} "
            f"steps computed, at most {self.most_skipped} skipped in a row"
        )


def parse_step_cache(value: Any) -> StepCache | None:
    """A step cache from `first-block` or `first-block:0.08`; None from `off`.

    Raises:
        ValueError: the value is none of these.
    """
    if value is None or isinstance(value, StepCache):
        return value
    word = str(value).strip().lower()
    if word == "off":
        return None
    match = re.fullmatch(rf"{METHOD}(?::(\d*\.?\d+))?", word)
    if match is None or not 0 <= float(match[1] or 0) <= 1:
        raise ValueError(EXPECTED)
    return StepCache() if match[1] is None else StepCache(float(match[1]))


class CachedSteps:
    """The steps of one edit, each computed or skipped.

    Holds up to 130 MB for an image of a megapixel and the 12B model, less than its decoding takes later.
    """

    def __init__(self, rules: StepCache, steps: int) -> None:
        self.rules = rules
        self.steps = steps
        self.computed = 0
        self._skipped_in_a_row = 0
        self._first: Tensor | None = None  # what the first block added at the last computed step
        self._others: Tensor | None = None  # what all other blocks added there
        self._pending: tuple[Tensor, Tensor] | None = None  # of the step that is being computed

    def skip(self, step: int, before: Tensor, after: Tensor) -> Tensor | None:
        """Output of the last block if the step is skipped; None if it has to be computed, and then `keep` is next.

        The host waits for the device, for one number, and only where that number decides.

        Args:
            step: index of the step; they come in order.
            before, after: the target's tokens before and after the first block, shape (batch, target length, hidden).
        """
        first = after - before
        if self._may_skip(step) and self._is_close(first):
            assert self._others is not None
            self._skipped_in_a_row += 1
            return after + self._others
        self._pending = (first, after)
        return None

    def keep(self, output: Tensor) -> None:
        """Remember a step that was computed.

        Args:
            output: the target's tokens after the last block.
        """
        assert self._pending is not None
        self._first, after = self._pending
        self._others = output - after
        self._pending = None
        self._skipped_in_a_row = 0
        self.computed += 1

    def _may_skip(self, step: int) -> bool:
        rules = self.rules
        return (
            self._first is not None
            and rules.warm_up_steps <= step < self.steps - rules.last_steps
            and self._skipped_in_a_row < rules.most_skipped
        )

    def _is_close(self, first: Tensor) -> bool:
        assert self._first is not None
        change = (first - self._first).float().abs().sum() / self._first.float().abs().sum()
        return bool(change.item() < self.rules.threshold)  # a NaN is not close: the step is computed
