"""A suspect works alone; everybody else overlaps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread

import pytest

from jobs.errors import Cancelled
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.isolation import Isolation


class Worker(Thread):
    """Works on a job until it is told to end."""

    def __init__(self, isolation: Isolation, is_suspect: bool) -> None:
        super().__init__(daemon=True)
        self.is_working, self.may_end = Event(), Event()
        self._isolation, self._is_suspect = isolation, is_suspect
        self.start()

    def run(self) -> None:
        with self._isolation.work(self._is_suspect, lambda: None):
            self.is_working.set()
            self.may_end.wait(PATIENCE_SECONDS)

    def end(self) -> None:
        self.may_end.set()
        self.join(PATIENCE_SECONDS)


@pytest.fixture
def isolation() -> Isolation:
    return Isolation()


@pytest.fixture
def end(isolation: Isolation) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start(isolation: Isolation, end: ExitStack, is_suspect: bool = False) -> Worker:
    worker = Worker(isolation, is_suspect)
    end.callback(worker.end)
    return worker


def test_ordinary_jobs_overlap(isolation: Isolation, end: ExitStack) -> None:
    workers = [start(isolation, end) for _ in range(3)]

    assert all(worker.is_working.wait(PATIENCE_SECONDS) for worker in workers)


def test_a_suspect_begins_when_everybody_has_ended_and_nobody_begins_meanwhile(
    isolation: Isolation, end: ExitStack
) -> None:
    before = start(isolation, end)
    assert before.is_working.wait(PATIENCE_SECONDS)
    suspect = start(isolation, end, is_suspect=True)
    eventually(lambda: isolation._suspects_waiting == 1)
    after = start(isolation, end)
    assert not after.is_working.wait(0.3)
    assert not suspect.is_working.is_set()

    before.end()
    assert suspect.is_working.wait(PATIENCE_SECONDS)
    assert not after.is_working.wait(0.3)

    suspect.end()
    assert after.is_working.wait(PATIENCE_SECONDS)


def test_two_suspects_take_turns(isolation: Isolation, end: ExitStack) -> None:
    first, second = start(isolation, end, is_suspect=True), start(isolation, end, is_suspect=True)
    eventually(lambda: first.is_working.is_set() or second.is_working.is_set())
    assert not (first.is_working.is_set() and second.is_working.is_set())
    first.may_end.set()
    second.may_end.set()

    assert first.is_working.wait(PATIENCE_SECONDS)
    assert second.is_working.wait(PATIENCE_SECONDS)


def test_a_wait_ends_when_its_job_does(isolation: Isolation, end: ExitStack) -> None:
    assert start(isolation, end).is_working.wait(PATIENCE_SECONDS)

    def cancelled() -> None:
        raise Cancelled

    with pytest.raises(Cancelled), isolation.work(True, cancelled):
        pass
    assert start(isolation, end).is_working.wait(PATIENCE_SECONDS), "the suspect that gave up keeps nobody waiting"
