"""Messages in the queue that are none of ours, each with the reason that its dead letter must have."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from celery import Celery
from redis import Redis

from jobs.celery_app import make_app
from jobs.names import LARGEST_MESSAGE_BYTES
from jobs.queue import QUEUE, TASK

Change = Callable[[dict[str, Any]], Any]

GZIP = "application/x-gzip"
BUILT_IN_TASKS = [
    "accumulate",
    "backend_cleanup",
    "chain",
    "chord",
    "chord_unlock",
    "chunks",
    "group",
    "map",
    "starmap",
]


def with_header(name: str, value: Any) -> Change:
    return lambda message: message["headers"].update({name: value})


def with_property(name: str, value: Any) -> Change:
    return lambda message: message["properties"].update({name: value})


def with_field(name: str, value: Any) -> Change:
    return lambda message: message.update({name: value})


def with_content(content: Any) -> Change:
    return with_field("body", base64.b64encode(json.dumps(content).encode()).decode())


def without(*path: str) -> Change:
    def change(message: dict[str, Any]) -> None:
        for name in path[:-1]:
            message = message[name]
        del message[path[-1]]

    return change


def packed(content: bytes, kind: Any = GZIP) -> Change:
    def change(message: dict[str, Any]) -> None:
        message["headers"]["compression"] = kind
        message["body"] = base64.b64encode(content).decode()

    return change


def each(name: str, make: Callable[[str, Any], Change], values: Iterable[Any], reason: str) -> dict[str, Any]:
    """One case for each value of that field; `{kind}` in the reason is the name of the value's type."""
    return {f"{name} {value!r}"[:40]: (make(name, value), reason.format(kind=type(value).__name__)) for value in values}


NOT_JSON, NO_OBJECT = "the message is not JSON", "the message: unexpected {kind}, expected an object"
PARTS = "the body is not a list of arguments, keywords and options"

RAW: dict[str, tuple[str, str]] = {
    "nothing": ("", NOT_JSON),
    "garbage": ("garbage", NOT_JSON),
    "half an object": ("{", NOT_JSON),
    "a null byte": ("\x00", NOT_JSON),
    "three objects": ("{}" * 3, NOT_JSON),
    "lists in each other": ("[" * 100_000, NOT_JSON),
    "a number of 5,000 digits": ("9" * 5000, NOT_JSON),
    "null": ("null", NO_OBJECT.format(kind="NoneType")),
    "a number": ("5", NO_OBJECT.format(kind="int")),
    "true": ("true", NO_OBJECT.format(kind="bool")),
    "infinity": ("1e999", NO_OBJECT.format(kind="float")),
    "a list": ("[]", NO_OBJECT.format(kind="list")),
    "a text": ('"text"', NO_OBJECT.format(kind="str")),
    "an empty object": ("{}", "headers: unexpected NoneType, expected an object"),
    "a million lists": ("[" + "[]," * 1_000_000 + "[]]", "the message has more than 250000 values"),
    "a protocol 1 message": (
        json.dumps({"body": "e30=", "headers": {}, "properties": {}, "content-type": "application/json"}),
        f"task is None, expected {TASK}",
    ),
}

NO_ARGUMENTS: tuple[Any, ...] = (None, 5, "text", [], {}, [[]], [[], {}], [[], {}, {}, {}])

CHANGED: dict[str, tuple[Change, str]] = {
    **each("body", with_field, (None, 5, [], {}, True), "the body: unexpected {kind}"),
    **each("body", with_field, ("%%%", "é", "YWJj\n", "YWJ"), "the body is not base64"),
    **each("body", with_field, ("bm90IGpzb24=", "", "/w=="), "the body is not JSON"),
    **{f"body of {content!r}": (with_content(content), PARTS) for content in NO_ARGUMENTS},
    "arguments that are null": (with_content([None, {}, {}]), "the arguments: unexpected NoneType"),
    "arguments that are an object": (with_content([{}, {}, {}]), "the arguments: unexpected dict"),
    "keywords that are a list": (with_content([[], [], {}]), "the keywords: unexpected list"),
    "options that are a list": (with_content([[], {}, []]), "the options: unexpected list"),
    "a keyword self": (with_content([[], {"self": 1}, {}]), "a keyword is called self"),
    "callbacks that are a number": (with_content([["a"], {}, {"callbacks": 5}]), "callbacks: unexpected int"),
    "errbacks that are a text": (with_content([["a"], {}, {"errbacks": "x"}]), "errbacks: unexpected str"),
    "a chain that is an object": (with_content([["a"], {}, {"chain": {}}]), "chain: unexpected dict"),
    "a chord that is a text": (with_content([["a"], {}, {"chord": "x"}]), "chord: unexpected str"),
    "a job 100,000 lists deep": (
        with_field("body", base64.b64encode(b"[" * 100_000 + b"]" * 100_000).decode()),
        "the body is not JSON",
    ),
    **each("content-type", with_field, ("", None, 5, "application/x-python-serialize"), "content-type is "),
    **each("content-type", with_field, ("application/x-yaml", "application/x-msgpack", []), "content-type is "),
    **each("content-encoding", with_field, ("", None, 5, "latin-9", "no such", "zip"), "content-encoding is "),
    **each("headers", with_field, (None, 5, [], "x"), "headers: unexpected {kind}, expected an object"),
    **each("properties", with_field, (None, 5, [], "x"), "properties: unexpected {kind}, expected an object"),
    **each("task", with_header, (None, [], {}, 5, "", "no.such.task", "\x1b[2J\n" * 99), "task is "),
    **each("task", with_header, [f"celery.{name}" for name in BUILT_IN_TASKS], f", expected {TASK}"),
    **each("id", with_header, (None, 5, [1], {}, "", "a b", "a\nb", "\x1b[31m", "x" * 129, "é", "../a"), "id is "),
    **each("expires", with_header, ([], {}, "soon", True, 1e300, -5), "expires is "),
    **each("eta", with_header, ([], {}, "soon", 5), "eta is "),
    **each("timelimit", with_header, (5, {}, "x"), "timelimit: unexpected {kind}"),
    **each("timelimit", with_header, ([1], ["a", "b"], [1, 2, 3]), "timelimit is not a pair of numbers"),
    **each("retries", with_header, ("1", [], 1.5, True), "retries: unexpected {kind}"),
    **each("group", with_header, (5, [], {}), "group: unexpected {kind}"),
    **each("root_id", with_header, (5, []), "root_id: unexpected {kind}"),
    **each("parent_id", with_header, (5, []), "parent_id: unexpected {kind}"),
    **each("argsrepr", with_header, (5, []), "argsrepr: unexpected {kind}"),
    **each("stamps", with_header, (5, []), "stamps: unexpected {kind}"),
    **each("delivery_tag", with_property, (None, 5, [], {}), "delivery_tag: unexpected {kind}"),
    **each("delivery_info", with_property, (None, 5, [], "x"), "delivery_info: unexpected {kind}, expected an object"),
    **each("body_encoding", with_property, (5, [], "rot13", "hex"), "body_encoding is "),
    **each("reply_to", with_property, (5, [], {}), "reply_to: unexpected {kind}"),
    **each("correlation_id", with_property, (5, [], {}), "correlation_id: unexpected {kind}"),
    **each("priority", with_property, ("high", [], 1.5), "priority: unexpected {kind}"),
    "no headers": (without("headers"), "headers: unexpected NoneType, expected an object"),
    "no properties": (without("properties"), "properties: unexpected NoneType, expected an object"),
    "no body": (without("body"), "the body: unexpected NoneType"),
    "no task": (without("headers", "task"), f"task is None, expected {TASK}"),
    "no id": (without("headers", "id"), "id is None, expected letters"),
    "no delivery tag": (without("properties", "delivery_tag"), "delivery_tag: unexpected NoneType"),
    "compression by bzip2": (packed(b"x", "application/x-bz2"), f"expected {GZIP} or none"),
    "compression by zstd": (packed(b"x", "application/zstd"), f"expected {GZIP} or none"),
    "compression that is a list": (packed(b"x", []), f"expected {GZIP} or none"),
    "compressed garbage": (packed(b"garbage"), "the body cannot be unpacked"),
    "compressed and cut short": (packed(zlib.compress(b"[[], {}, {}]")[:-4]), "the body is cut short"),
    "a bomb": (packed(zlib.compress(b" " * (LARGEST_MESSAGE_BYTES + 1))), "the body is cut short, or longer than"),
    "a bomb of lists": (
        packed(zlib.compress(b"[" + b"[]," * 500_000 + b"[]]")),
        "the body has more than 250000 values",
    ),
    "too large": (with_field("body", "A" * LARGEST_MESSAGE_BYTES), f"at most {LARGEST_MESSAGE_BYTES} are taken"),
}


def valid_message(broker_url: str) -> dict[str, Any]:
    """A message for a job that is in no ledger, as Celery writes it; taken from a database of its own."""
    with aside(broker_url) as (app, redis):
        app.send_task(TASK, queue=QUEUE, args=["nobody"], task_id="nobody")
        return _taken(redis)


def whole_message(broker_url: str) -> dict[str, Any]:
    """A message that carries a job, as any Celery client writes it."""
    with aside(broker_url) as (app, redis):
        app.send_task(TASK, queue=QUEUE, args=[{"image": "data:,x", "prompt": "make it snow"}], task_id="whole")
        return _taken(redis)


@contextmanager
def aside(broker_url: str) -> Iterator[tuple[Celery, Redis]]:
    """An application and a client on a database that no worker reads."""
    url = urlsplit(broker_url)._replace(path="/15").geturl()
    with make_app(url) as app, Redis.from_url(url, decode_responses=True) as redis:
        yield app, redis
        redis.flushdb()


def _taken(redis: Redis) -> dict[str, Any]:
    return dict(json.loads(cast(str, redis.lpop(QUEUE))))


def changed(valid: dict[str, Any], change: Change) -> str:
    """The message as JSON, after the change."""
    message = copy.deepcopy(valid)
    change(message)
    return json.dumps(message)


def hostile_messages(valid: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Every message of the tables by its name, with the reason that it must be put aside for."""
    made = {name: (changed(valid, change), reason) for name, (change, reason) in CHANGED.items()}
    return {**RAW, **made}
