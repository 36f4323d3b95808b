"""Messages that are none of ours: a catalogue of forms, and random damage to a valid one."""

from __future__ import annotations

import base64
import copy
import json
import random
import zlib
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit

from redis import Redis

from jobs.queue import QUEUE, EditQueue, make_app
from worker.intake import LARGEST_MESSAGE_BYTES

Change = Callable[[dict[str, Any]], Any]

BUILT_IN_TASKS = (
    *("accumulate", "backend_cleanup", "chain", "chord", "chord_unlock", "chunks", "group", "map", "starmap"),
)


def envelope(broker_url: str) -> dict[str, Any]:
    """A valid message for a job that is in no ledger, as our own queue writes it; taken from a database of its own."""
    aside = urlsplit(broker_url)._replace(path="/15").geturl()
    with make_app(aside) as app, Redis.from_url(aside, decode_responses=True) as redis:
        EditQueue(app).send(["nobody"])
        written: dict[str, Any] = json.loads(cast(str, redis.lpop(QUEUE)))
        redis.flushdb()
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
