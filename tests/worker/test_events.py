"""Events: each has its line, a listener that fails harms nothing, and the log names them as it always has."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from jobs.schema import JobState
from worker import events
from worker.event_log import EventLog
from worker.events import (
    CallbackRetried,
    CallbackSettled,
    Event,
    Events,
    JobEnded,
    JobTaken,
    Origin,
    RunFailed,
    WorkerBroken,
    WorkerStuck,
)

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and "__annotations__" in vars(kind) and fields(kind)
]
VALUES = {str: "text", int: 7, float: 1.5, JobState: JobState.FAILED, Origin: Origin("batch")}


PAGE = Path(__file__).parents[2] / "docs" / "events.md"


def example(kind: type[Event]) -> Event:
    hints = get_type_hints(kind)
    values = [
        "pending" if field.name == "verdict" else VALUES.get(hints[field.name], ValueError("cause"))
        for field in fields(kind)
    ]
    return kind(*values)


@pytest.mark.parametrize(
    ("event", "level", "line"),
    [
        (
            JobEnded("a", 2, 1.234, "-", JobState.SUCCEEDED, 0.5),
            logging.INFO,
            "job_succeeded job=a attempt=2 seconds=1.23 code=-",
        ),
        (
            CallbackSettled("a", 1, "HTTP 204", 0, "delivered", 0.1),
            logging.INFO,
            "callback_delivered job=a attempt=1 said=HTTP 204 retry_in=0",
        ),
        (
            CallbackRetried("a", 1, "HTTP 500", 5.2, "pending", 0.1),
            logging.WARNING,
            "callback_pending job=a attempt=1 said=HTTP 500 retry_in=5",
        ),
        (WorkerBroken("no device"), logging.CRITICAL, "worker_broken reason=no device"),
        (WorkerStuck("a", "no step for 5 s"), logging.CRITICAL, "worker_stuck job=a reason=no step for 5 s"),
    ],
)
def test_the_log_has_one_line_for_an_event(
    event: Event, level: int, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        EventLog().hear(event)

    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, line)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_has_a_docstring_and_a_line(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")  # what a dataclass writes by itself

    with caplog.at_level(logging.DEBUG):
        EventLog().hear(example(kind))

    assert caplog.records[0].getMessage().split(" ")[0].isidentifier()


def test_an_exception_that_nobody_foresaw_is_logged_with_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    EventLog().hear(RunFailed("a", "engine_failed", ValueError("odd")))
    EventLog().hear(RunFailed("a", "input_not_found", None))

    assert "ValueError: odd" in caplog.text
    assert caplog.records[1].exc_info is None


def test_a_listener_that_fails_harms_neither_the_sender_nor_its_neighbours(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("no metrics today")

    bus = Events(broken, heard.append)

    bus.send(JobTaken("a", 1, 0.0))

    assert heard == [JobTaken("a", 1, 0.0)]
    assert "listener_failed event=job_taken" in caplog.text


def test_the_page_lists_every_event_with_its_level_its_fields_and_its_meaning() -> None:
    rows = [
        f"| `{example(kind).name}` | {logging.getLevelName(kind.level)} | "
        f"{' '.join(f'`{key}`' for key, _ in example(kind).items())} | {' '.join(str(kind.__doc__).split())} |"
        for kind in KINDS
    ]

    page, _, _ = PAGE.read_text().partition("## Traces")
    assert [line for line in page.splitlines() if line.startswith("| `")] == rows
