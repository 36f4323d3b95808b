"""Guards the way from Redis to the task: a message that is none of ours is put aside before Celery sees it.

Celery and kombu raise for most malformed messages before anything is acknowledged. The consumer then ends, the message
goes back, and the next worker takes it: one message would end them all. So what BRPOP brings is checked here, byte by
byte, and a message of another form is answered to kombu as "nothing came".

Source of the form: Celery's message protocol, version 2.
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime
from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks

from jobs.dead_letters import DeadLetters
from jobs.errors import BrokerError
from jobs.names import LARGEST_MESSAGE_BYTES
from jobs.queue import TASK
from jobs.schema import JOB_ID_PATTERN
from worker.events import DeadLetterLost, Events, MessagePutAside

MOST_VALUES = 250_000
"""In one JSON text. A list of nothing takes 3 bytes of JSON and 64 of memory."""

COMPRESSIONS = {"application/x-gzip": zlib.MAX_WBITS}
"""Compressions that are unpacked, by Celery's names: those whose size can be bounded while unpacking."""

log = logging.getLogger(__name__)


class NotOurs(Exception):
    """Raised when a message does not have the form of one of ours; its text is the reason."""


def check_message(raw: bytes | str) -> None:
    """Check that a message in the queue is one that Celery can take and that names our task.

    Args:
        raw: the item of the Redis list, as kombu writes it: an envelope in JSON around an encoded body.
    Raises:
        NotOurs: it is something else.
    """
    if len(raw) > LARGEST_MESSAGE_BYTES:
        raise NotOurs(f"{len(raw)} bytes, at most {LARGEST_MESSAGE_BYTES} are taken")
    envelope = _object(_parsed(raw, "the message"), "the message")
    headers, properties = _object(envelope.get("headers"), "headers"), _object(envelope.get("properties"), "properties")
    _check_headers(headers)
    _check_properties(properties)
    if envelope.get("content-type") != "application/json":
        raise NotOurs(f"content-type is {_shown(envelope.get('content-type'))}, expected application/json")
    if envelope.get("content-encoding") not in ("utf-8", "binary"):
        raise NotOurs(f"content-encoding is {_shown(envelope.get('content-encoding'))}, expected utf-8")
    _check_body(_unpacked(envelope.get("body"), properties.get("body_encoding"), headers.get("compression")))


def _check_headers(headers: dict[str, Any]) -> None:
    if headers.get("task") != TASK:
        raise NotOurs(f"task is {_shown(headers.get('task'))}, expected {TASK}")
    task_id = headers.get("id")
    if not isinstance(task_id, str) or not re.fullmatch(JOB_ID_PATTERN, task_id):
        raise NotOurs(f"id is {_shown(task_id)}, expected letters, digits and . _ : - , at most 128")
    for name in ("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr"):
        _expect(headers.get(name), (str, type(None)), name)
    for name in ("retries", "group_index"):
        _expect(headers.get(name), (int, type(None)), name)
    for name in ("eta", "expires"):
        _check_time(headers.get(name), name)
    limits = headers.get("timelimit")
    _expect(limits, (list, type(None)), "timelimit")
    if limits is not None and (len(limits) != 2 or not all(_is_number(limit) for limit in limits if limit is not None)):
        raise NotOurs("timelimit is not a pair of numbers")
    _expect(headers.get("stamped_headers"), (list, type(None)), "stamped_headers")
    _expect(headers.get("stamps"), (dict, type(None)), "stamps")
    _expect(headers.get("replaced_task_nesting"), (int, type(None)), "replaced_task_nesting")


def _check_properties(properties: dict[str, Any]) -> None:
    _expect(properties.get("delivery_tag"), str, "delivery_tag")
    info = _object(properties.get("delivery_info"), "delivery_info")
    for name in ("exchange", "routing_key"):
        _expect(info.get(name), (str, type(None)), name)
    for name in ("correlation_id", "reply_to"):
        _expect(properties.get(name), (str, type(None)), name)
    for name, place in (("priority", properties), ("priority", info)):
        _expect(place.get(name), (int, type(None)), name)
    if properties.get("body_encoding") not in ("base64", None):
        raise NotOurs(f"body_encoding is {_shown(properties['body_encoding'])}, expected base64")


def _check_body(body: bytes | str) -> None:
    content = _parsed(body, "the body")
    if not isinstance(content, list) or len(content) != 3:
        raise NotOurs("the body is not a list of arguments, keywords and options")
    arguments, keywords, options = content
    _expect(arguments, list, "the arguments")
    _expect(keywords, dict, "the keywords")
    _expect(options, (dict, type(None)), "the options")
    if "self" in keywords:
        raise NotOurs("a keyword is called self")
    for name in ("callbacks", "errbacks", "chain"):
        _expect((options or {}).get(name), (list, type(None)), name)
    _expect((options or {}).get("chord"), (dict, type(None)), "chord")


def _unpacked(body: Any, encoding: str | None, compression: Any) -> bytes | str:
    """The body as JSON, unpacked no further than the largest size."""
    _expect(body, str, "the body")
    if encoding is None:
        packed: bytes | str = body
    else:
        try:
            packed = b64decode(body, validate=True)
        except ValueError as error:
            raise NotOurs("the body is not base64") from error
    if compression is None:
        return packed
    if not isinstance(compression, str) or compression not in COMPRESSIONS or isinstance(packed, str):
        raise NotOurs(f"compression is {_shown(compression)}, expected {', '.join(COMPRESSIONS)} or none")
    unpacker = zlib.decompressobj(COMPRESSIONS[compression])
    try:
        unpacked = unpacker.decompress(packed, LARGEST_MESSAGE_BYTES + 1)
    except zlib.error as error:
        raise NotOurs("the body cannot be unpacked") from error
    if len(unpacked) > LARGEST_MESSAGE_BYTES or not unpacker.eof:
        raise NotOurs(f"the body is cut short, or longer than {LARGEST_MESSAGE_BYTES} bytes once unpacked")
    return unpacked


def _parsed(text: bytes | str, what: str) -> Any:
    marks: Any = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if sum(map(text.count, marks)) > MOST_VALUES:  # those inside of texts are few: inputs are in base64
        raise NotOurs(f"{what} has more than {MOST_VALUES} values")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise NotOurs(f"{what} is not JSON") from error


def _check_time(value: Any, name: str) -> None:
    """Celery takes a time as ISO text, for `expires` also as seconds."""
    if value is None or (name == "expires" and _is_number(value) and 0 <= value < 1e9):
        return
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise NotOurs(f"{name} is {_shown(value)}, expected a time such as 2026-01-31T12:00:00+00:00") from error


def _expect(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise NotOurs(f"{name}: unexpected {type(value).__name__}")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotOurs(f"{name}: unexpected {type(value).__name__}, expected an object")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return ascii(value)[:80]


class Intake:
    """Checks what the consumer takes and puts aside what is none of ours.

    Args:
        on_taken: told of every message, whatever it is.
    """

    def __init__(
        self, letters: DeadLetters, worker: str, events: Events, on_taken: Callable[[], None] = lambda: None
    ) -> None:
        self._on_taken = on_taken
        self._events = events
        self._letters = letters
        self._worker = worker

    def checked(self, answer: Any) -> Any:
        """An answer of BRPOP as it came; None, which is "nothing came", when its message was put aside."""
        if not answer:
            return answer
        self._on_taken()
        raw = answer[1]
        try:
            check_message(raw)
        except NotOurs as reason:
            self.put_aside(raw if isinstance(raw, bytes) else raw.encode(), str(reason))
            return None
        return answer

    def put_aside(self, message: bytes, reason: str) -> None:
        """Keep a message among the dead letters; when Redis refuses it even there, the log line is all that stays."""
        self._events.send(MessagePutAside(len(message), reason))
        try:
            self._letters.put(message, reason, self._worker)
        except BrokerError as error:
            self._events.send(DeadLetterLost(str(error)))

    def guard(self, channel: Any) -> None:
        """Check every BRPOP answer of a kombu channel from now on."""
        client = channel.client
        parse = client.parse_response

        def parse_checked(connection: Any, command_name: str, **options: Any) -> Any:
            answer = parse(connection, command_name, **options)
            return self.checked(answer) if command_name == "BRPOP" else answer

        client.parse_response = parse_checked

    def guard_handler(self, make_handler: Callable[..., Callable[[Any], Any]]) -> Callable[..., Callable[[Any], Any]]:
        """Wrap Celery's maker of task handlers: whatever a handler raises for one message is that message's end."""

        def make(*arguments: Any, **options: Any) -> Callable[[Any], Any]:
            handler = make_handler(*arguments, **options)

            def handle(message: Any) -> Any:
                try:
                    return handler(message)
                except (MemoryError, OSError):
                    raise
                except Exception as error:  # one message, whatever Celery finds wrong with it
                    log.debug("message_refused_by_celery", exc_info=True)
                    reason = f"Celery cannot take it: {type(error).__name__}: {error}"[:200]
                    self.put_aside(json.dumps(message._raw, default=repr).encode(), ascii(reason)[1:-1])
                    message.ack()
                    return None

            return handle

        return make


class IntakeStep(bootsteps.StartStopStep):
    """Puts the intake of `app.edit_worker` before Celery's consumer, again after each reconnect."""

    requires = (Tasks,)

    def start(self, consumer: Any) -> None:
        intake: Intake = consumer.app.edit_worker.intake
        intake.guard(consumer.task_consumer.channel)
        if not hasattr(consumer, "unguarded_task_handler"):
            consumer.unguarded_task_handler = consumer.create_task_handler
            consumer.create_task_handler = intake.guard_handler(consumer.unguarded_task_handler)
