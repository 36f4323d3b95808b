"""The log as collectors read it: one JSON object a line."""

from __future__ import annotations

import io
import json
import logging

from jobs.schema import JobState
from jobs.shown import LONGEST_LINE
from worker.event_log import EventLog
from worker.events import JobEnded, RunFailed
from worker.logs import JsonLines


def lines_of(*actions: object) -> list[dict[str, object]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("w1"))
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers, root.level = [handler], logging.INFO
    logging.getLogger("worker").setLevel(logging.INFO)
    try:
        for action in actions:
            assert callable(action)
            action()
    finally:
        root.handlers, root.level = before
        logging.getLogger("worker").setLevel(logging.NOTSET)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_object_with_its_fields_unformatted() -> None:
    (line,) = lines_of(lambda: EventLog().hear(JobEnded("a", 2, 1.23456, "-", JobState.SUCCEEDED, 0.5)))

    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "worker",
        "worker": "w1",
        "event": "job_succeeded",
        "job": "a",
        "attempt": 2,
        "seconds": 1.23456,
        "code": "-",
    }


def test_a_trace_stays_on_the_line_of_its_event() -> None:
    (line,) = lines_of(lambda: EventLog().hear(RunFailed("a", "engine_failed", ValueError("two\nlines"))))

    assert line["event"] == "run_failed"
    assert "ValueError: two\nlines" in str(line["exception"])


def test_a_librarys_line_is_a_message() -> None:
    (line,) = lines_of(lambda: logging.getLogger("celery").warning("Connection to %s lost", "redis"))

    assert (line["logger"], line["message"]) == ("celery", "Connection to redis lost")
    assert "event" not in line


def test_long_fields_and_long_traces_are_cut() -> None:
    event_log = EventLog()
    actions = (
        lambda: event_log.hear(RunFailed("a " * 50_000, "engine_failed", None)),
        lambda: logging.getLogger("celery").warning("x " * 50_000),
        lambda: event_log.hear(RunFailed("a", "engine_failed", ValueError("first\n" * 10_000 + "the reason"))),
        lambda: event_log.hear(RunFailed("a", "engine_failed", ValueError("y " * 50_000))),
    )

    long_id, message, many_lines, long_line = lines_of(*actions)

    assert [len(str(long_id["job"])), len(str(message["message"]))] == [LONGEST_LINE, LONGEST_LINE]
    assert str(many_lines["exception"]).endswith("the reason")
    assert all(len(json.dumps(line)) < 5 * LONGEST_LINE for line in (many_lines, long_line))
