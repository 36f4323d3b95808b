"""An outage of Redis in the log: one line, whoever meets it, and rarely again."""

from __future__ import annotations

import logging

import pytest
from celery.worker.consumer import consumer

from jobs.errors import BrokerUnavailable
from worker.background import Periodic
from worker.events import Event, Events, RedisAway, RedisBack
from worker.redis_outage import CANNOT_CONNECT, CHATTER, REPEAT_SECONDS, ConsumerLines, RedisOutage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[Event]:
    return []


@pytest.fixture
def outage(said: list[Event], clock: Clock) -> RedisOutage:
    return RedisOutage(Events(said.append), clock)


def test_threads_that_meet_one_outage_say_it_once(outage: RedisOutage, said: list[Event], clock: Clock) -> None:
    outage.met("leases", "refused")
    clock.now += 3
    outage.met("callbacks", "refused")
    outage.over("leases")
    outage.over("never cut off")
    clock.now += 4
    outage.over("callbacks")

    assert said == [RedisAway(0.0, True, "refused"), RedisBack(7.0)]


def test_another_reason_is_told_and_a_long_outage_again(outage: RedisOutage, said: list[Event], clock: Clock) -> None:
    outage.met("leases", "refused")
    outage.met("callbacks", "no password")
    clock.now += REPEAT_SECONDS
    outage.met("leases", "refused")
    outage.met("leases", "refused")

    assert said == [
        RedisAway(0.0, True, "refused"),
        RedisAway(0.0, False, "no password"),
        RedisAway(REPEAT_SECONDS, False, "refused"),
    ]


def test_the_next_outage_is_a_new_one(outage: RedisOutage, said: list[Event]) -> None:
    for _ in range(2):
        outage.met("leases", "refused")
        outage.over("leases")

    assert said == [RedisAway(0.0, True, "refused"), RedisBack(0.0)] * 2


def test_a_thread_alone_reports_its_own(said: list[Event]) -> None:
    answers = [BrokerUnavailable("refused"), BrokerUnavailable("refused"), None]

    def tick() -> None:
        if error := answers.pop(0):
            raise error

    thread = Periodic("callbacks", 1, tick, Events(said.append))
    for _ in range(3):
        thread.run_once()

    assert [type(event) for event in said] == [RedisAway, RedisBack]


def record(message: str, *arguments: object) -> logging.LogRecord:
    return logging.LogRecord(consumer.__name__, logging.ERROR, "", 0, message, arguments, None)


def test_the_consumer_is_heard_until_the_outage_is_known(outage: RedisOutage) -> None:
    lines = ConsumerLines(outage)
    first, later = (record(CANNOT_CONNECT, "redis://h", "refused.", "Trying again in 2 seconds...\n") for _ in range(2))

    assert lines.filter(first)
    assert first.getMessage() == "consumer: cannot connect to redis://h: refused. Trying again in 2 seconds..."
    assert not lines.filter(record("%s (%r)", CHATTER[0], OSError()))
    assert lines.filter(record("Connected to %s", "redis://h"))

    outage.met("leases", "refused")
    assert not lines.filter(later)
