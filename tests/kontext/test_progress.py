"""When steps are reported beside when they are launched and done."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from kontext.progress import Wait, report_behind, report_steps


class Device:
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.launched = 0

    def launch(self) -> int:
        self.launched += 1
        self.events.append(f"launch {self.launched}")
        return self.launched

    def mark(self) -> Wait:
        step = self.launched
        return lambda: self.events.append(f"wait {step}")

    def report(self, done: int, total: int) -> None:
        self.events.append(f"report {done}")


def run(device: Device, after_step: Callable[[int, int], None], total: int) -> list[str]:
    for _ in range(total):
        after_step(device.launch(), total)
    return device.events


def test_the_next_step_is_launched_before_the_host_waits_for_one() -> None:
    device = Device()

    events = run(device, report_behind(device.report, device.mark, ahead=1), total=3)

    assert events == [
        *("launch 1", "launch 2", "wait 1", "report 1"),
        *("launch 3", "wait 2", "report 2", "wait 3", "report 3"),
    ]


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_every_step_is_reported_once_in_order_and_only_when_done(ahead: int) -> None:
    device = Device()

    events = run(device, report_behind(device.report, device.mark, ahead), total=4)

    assert [event for event in events if event.startswith("report")] == [f"report {step}" for step in range(1, 5)]
    assert all(events.index(f"wait {step}") < events.index(f"report {step}") for step in range(1, 5))


def test_an_edit_of_one_step_is_reported() -> None:
    device = Device()

    assert run(device, report_behind(device.report, device.mark, ahead=1), total=1)[-1] == "report 1"


def test_on_cuda_the_host_sleeps_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[dict[str, bool]] = []

    def event(**options: bool) -> SimpleNamespace:
        return SimpleNamespace(synchronize=lambda: waited.append(options))

    stream = SimpleNamespace(record_event=lambda event: event)
    monkeypatch.setattr(torch.cuda, "Event", event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)

    report_steps(lambda done, total: None, torch.device("cuda"))(1, 1)

    assert waited == [{"blocking": True}]
