"""Messages that are none of ours, given to a live worker: it puts each aside, says why, and takes the next good job."""

from __future__ import annotations

import base64
import copy
import json
import random
import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from jobs.dead_letters import DeadLetters
from jobs.queue import QUEUE, TASK, EditQueue, make_app
from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker
from tests.waiting import eventually
from worker.intake import LARGEST_MESSAGE_BYTES, NotOurs, check_message

Change = Callable[[dict[str, Any]], Any]

BUILT_IN_TASKS = (
    *("accumulate", "backend_cleanup", "chain", "chord", "chord_unlock", "chunks", "group", "map", "starmap"),
)


def envelope(service: Service) -> dict[str, Any]:
    """A valid message for a job that is in no ledger, as our own queue writes it."""
    redis = service.ledger.redis
    with make_app(service.settings.broker_url) as app:
        EditQueue(app).send(["nobody"])
    written: dict[str, Any] = json.loads(redis.lpop(QUEUE))  # type: ignore[arg-type]
    return written


def encoded(content: Any) -> str:
    return base64.b64encode(json.dumps(content).encode()).decode()


def with_header(name: str, value: Any) -> Change:
    return lambda message: message["headers"].update({name: value})


def with_property(name: str, value: Any) -> Change:
    return lambda message: message["properties"].update({name: value})


def with_field(name: str, value: Any) -> Change:
    return lambda message: message.update({name: value})


def without(*path: str) -> Change:
    def change(message: dict[str, Any]) -> None:
        for name in path[:-1]:
            message = message[name]
        del message[path[-1]]

    return change


def compressed(content: bytes, kind: Any) -> Change:
    def change(message: dict[str, Any]) -> None:
        message["headers"]["compression"] = kind
        message["body"] = base64.b64encode(content).decode()

    return change


RAW = ["", "garbage", "null", "5", "[]", "{}", '"text"', "{", "\x00", "[" * 100_000, "{}" * 3, "true", "1e999"]
CHANGES: dict[str, Change] = {
    **{f"body {value!r}"[:30]: with_field("body", value) for value in (None, 5, [], {}, True, "%%%", "bm90IGpzb24=")},
    **{
        f"body of {content!r}"[:40]: with_field("body", encoded(content))
        for content in (None, 5, [], {}, [[]], [[], {}], [{}, {}, {}], [[], [], {}], [None, {}, {}], [[], {}, []])
    },
    "keyword self": with_field("body", encoded([[], {"self": 1}, {}])),
    "callbacks that are no list": with_field("body", encoded([["a"], {}, {"callbacks": 5}])),
    "chord that is no object": with_field("body", encoded([["a"], {}, {"chord": "x"}])),
    **{f"content-type {v!r}": with_field("content-type", v) for v in ("", None, 5, "application/x-python-serialize")},
    **{f"content-encoding {v!r}": with_field("content-encoding", v) for v in ("", None, 5, "latin-9", "no such")},
    **{f"headers {v!r}": with_field("headers", v) for v in (None, 5, [], "x")},
    **{f"properties {v!r}": with_field("properties", v) for v in (None, 5, [], "x")},
    **{f"task {v!r}": with_header("task", v) for v in (None, [], {}, 5, "", "no.such.task")},
    **{f"task celery.{name}": with_header("task", f"celery.{name}") for name in BUILT_IN_TASKS},
    **{f"id {v!r}"[:30]: with_header("id", v) for v in (None, 5, [1], {}, "", "a b", "a\nb", "\x1b[31m", "x" * 129)},
    **{f"expires {v!r}": with_header("expires", v) for v in ([], {}, "soon", True, 1e300, -5)},
    **{f"eta {v!r}": with_header("eta", v) for v in ([], {}, "soon", 5)},
    **{f"timelimit {v!r}": with_header("timelimit", v) for v in (5, [1], ["a", "b"], [1, 2, 3], {})},
    **{f"retries {v!r}": with_header("retries", v) for v in ("1", [], 1.5)},
    **{f"group {v!r}": with_header("group", v) for v in (5, [], {})},
    **{f"delivery_tag {v!r}": with_property("delivery_tag", v) for v in (None, 5, [], {})},
    **{f"delivery_info {v!r}": with_property("delivery_info", v) for v in (None, 5, [], "x")},
    **{f"body_encoding {v!r}": with_property("body_encoding", v) for v in (5, [], "rot13")},
    **{f"reply_to {v!r}": with_property("reply_to", v) for v in (5, [], {})},
    "no headers": without("headers"),
    "no properties": without("properties"),
    "no body": without("body"),
    "no task": without("headers", "task"),
    "no id": without("headers", "id"),
    "no delivery tag": without("properties", "delivery_tag"),
    "unknown compression": compressed(b"x", "application/x-bz2"),
    "compression that is a list": compressed(b"x", []),
    "compressed garbage": compressed(b"garbage", "application/x-gzip"),
    "a bomb": compressed(zlib.compress(b" " * (LARGEST_MESSAGE_BYTES + 1)), "application/x-gzip"),
    "an unpacked body of half a million lists": compressed(
        zlib.compress(b"[" + b"[]," * 500_000 + b"[]]"), "application/x-gzip"
    ),
    "too large": with_field("body", "A" * LARGEST_MESSAGE_BYTES),
}


def changed(valid: dict[str, Any], change: Change) -> str:
    message = copy.deepcopy(valid)
    change(message)
    return json.dumps(message)


def test_a_worker_survives_every_malformed_message_and_keeps_each_with_its_reason(
    service: Service, start_worker: StartWorker
) -> None:
    valid, redis = envelope(service), service.ledger.redis
    hostile = [*RAW, *(changed(valid, change) for change in CHANGES.values())]
    worker = start_worker(STANDIN_STEP_SECONDS="0")

    for message in hostile:
        redis.lpush(QUEUE, message)
    service.submit("good", params={"num_inference_steps": 1})
    record = service.ended("good")

    assert record.state is JobState.SUCCEEDED
    assert record.attempts == 1
    letters = list(DeadLetters(redis, service.ledger.key("dead-letters")))
    assert len(letters) == len(hostile)
    assert all(letter.reason and letter.reason.isprintable() for letter in letters)
    assert worker.process.poll() is None
    assert worker.log.count("message_put_aside") == len(hostile)
    assert "\x1b" not in worker.log


def test_a_request_that_ends_without_its_task_leaves_the_gate_open(service: Service, start_worker: StartWorker) -> None:
    start_worker(STANDIN_STEP_SECONDS="0")
    with Celery(broker=service.settings.broker_url) as celery:
        for _ in range(5):
            celery.send_task("worker.tasks.edit", queue=QUEUE, args=["nobody"], expires=-60.0)
            celery.send_task("worker.tasks.edit", queue=QUEUE, args=["nobody", "too", "many"])

    service.submit("good", params={"num_inference_steps": 1})

    assert service.ended("good").state is JobState.SUCCEEDED


def test_a_compressed_message_of_a_plain_client_is_taken(service: Service, start_worker: StartWorker) -> None:
    start_worker(STANDIN_STEP_SECONDS="0")
    job = {"image": service.picture(), "prompt": "make it snow", "params": {"num_inference_steps": 1}}
    with Celery(broker=service.settings.broker_url) as celery:
        celery.send_task("worker.tasks.edit", queue=QUEUE, args=[job], task_id="packed", compression="gzip")

    eventually(lambda: service.ledger.get_many(["packed"])[0])
    assert service.ended("packed").state is JobState.SUCCEEDED


@pytest.mark.parametrize("seed", range(4))
def test_mutations_of_a_valid_message_between_good_jobs_cost_none_of_them(
    service: Service, start_worker: StartWorker, seed: int
) -> None:
    draw = random.Random(seed)
    valid = envelope(service)
    worker = start_worker(STANDIN_STEP_SECONDS="0")
    good = [f"good-{number}" for number in range(10)]

    for job_id in good:
        for _ in range(50):
            service.ledger.redis.lpush(QUEUE, mutated(valid, draw))
        service.submit(job_id, params={"num_inference_steps": 1})

    assert {service.ended(job_id).state for job_id in good} == {JobState.SUCCEEDED}
    assert worker.process.poll() is None


VALUES = (
    None,
    True,
    0,
    -1,
    2**70,
    1.5,
    "",
    "x",
    "\u202e",
    [],
    [1],
    {},
    {"a": 1},
    "celery.chain",
    "2026-01-01T00:00:00",
)


def mutated(valid: dict[str, Any], draw: random.Random) -> str:
    """Replace or remove a few values anywhere in a message, or damage its text."""
    message = copy.deepcopy(valid)
    for _ in range(draw.randint(1, 3)):
        place = draw.choice([message, message["headers"], message["properties"]] if _whole(message) else [message])
        name = draw.choice([*place, "expires", "eta"])
        if draw.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = draw.choice(VALUES)
    text = json.dumps(message)
    if draw.random() < 0.2:
        at = draw.randrange(len(text))
        text = text[:at] + draw.choice(["", "\x00", '"', "}", "\\"]) + text[at + 1 :]
    return text


def _whole(message: dict[str, Any]) -> bool:
    return isinstance(message.get("headers"), dict) and isinstance(message.get("properties"), dict)


def test_reasons_are_of_one_short_printable_line(service: Service) -> None:
    valid = envelope(service)
    with pytest.raises(NotOurs, match=re.escape(TASK)) as refused:
        check_message(changed(valid, with_header("task", "\x1b[31m\n" * 1000)))

    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 200
    check_message(json.dumps(valid))
