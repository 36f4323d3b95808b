"""Progress reports that do not stall the device: a step is reported while the next one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from kontext.device import record_event, synchronize
from kontext.request import OnStep

Wait = Callable[[], object]  # returns when the device has finished the work launched before


def report_steps(on_step: OnStep, device: torch.device) -> OnStep:
    """Function to call after launching a step; it calls `on_step` for each step once that is done.

    On CUDA one step is launched ahead. Otherwise the device would idle while the host launches the next step. A cancel
    therefore takes effect one step later.
    """
    if device.type == "cuda":
        return report_behind(on_step, lambda: record_event(torch.cuda.current_stream(device)).synchronize, ahead=1)
    return report_behind(on_step, lambda: lambda: synchronize(device), ahead=0)


def report_behind(on_step: OnStep, mark: Callable[[], Wait], ahead: int) -> OnStep:
    """Report each step once it is done, with up to `ahead` steps launched meanwhile; the last step is waited for.

    Args:
        mark: marks the end of the work launched so far and returns a function that waits for it.
    """
    launched: deque[Wait] = deque()

    def after_step(launched_steps: int, total: int) -> None:
        launched.append(mark())
        while launched and (len(launched) > ahead or launched_steps == total):
            launched.popleft()()
            on_step(launched_steps - len(launched), total)

    return after_step
