"""Progress without holding the device up: a step is reported while the next one is at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch

from kontext.device import synchronize
from kontext.request import OnStep

Wait = Callable[[], object]  # returns when the device is done with what it was given before


def report_steps(on_step: OnStep, device: torch.device) -> OnStep:
    """What to call after launching a step, so that `on_step` hears of each step when it is done.

    On CUDA one step is launched ahead, or the device would idle while the host launches the next: a cancel therefore
    takes effect one step later.
    """
    if device.type == "cuda":
        return report_behind(on_step, lambda: torch.cuda.current_stream(device).record_event().synchronize, ahead=1)
    return report_behind(on_step, lambda: lambda: synchronize(device), ahead=0)


def report_behind(on_step: OnStep, mark: Callable[[], Wait], ahead: int) -> OnStep:
    """Report each step when it is done, with as many steps launched ahead; the last one always.

    Args:
        mark: marks the end of what was launched so far.
    """
    launched: deque[Wait] = deque()

    def after_step(launched_steps: int, total: int) -> None:
        launched.append(mark())
        while launched and (len(launched) > ahead or launched_steps == total):
            launched.popleft()()
            on_step(launched_steps - len(launched), total)

    return after_step
