"""A worker that takes no message although some wait and it is idle says that it is not ready."""

from __future__ import annotations

import time

import pytest

from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker, service, start_worker
from tests.waiting import eventually
from worker.edit_worker import EXIT_BROKEN
from worker.health import read_health
from worker.untaken import GAP_SECONDS, MUTE_SECONDS, Untaken

__all__ = ["service", "start_worker"]


class Queue:
    """The queue, the worker and the clock of one `Untaken`."""

    def __init__(self) -> None:
        self.seconds, self.waiting, self.is_idle = 0.0, 1, True
        self.untaken = Untaken(lambda: self.waiting, lambda: self.is_idle, lambda: self.seconds)

    def reason_after(self, seconds: float) -> str:
        """The reason after so many seconds, each with a look at its end."""
        for _ in range(int(seconds)):
            self.seconds += 1
            self.untaken.look()
        return self.untaken.reason


def test_messages_that_wait_at_an_idle_worker_for_long_are_told_until_one_is_taken() -> None:
    queue = Queue()

    assert queue.reason_after(1 + MUTE_SECONDS) == ""
    assert queue.reason_after(1) == "idle, but none of 1 waiting messages was taken for 31 s; restart it"
    assert queue.untaken.seconds == 31
    queue.untaken.taken()
    assert (queue.untaken.reason, queue.untaken.seconds) == ("", 0)
    assert queue.reason_after(MUTE_SECONDS) == ""


def test_a_busy_worker_and_an_empty_queue_begin_the_time_anew() -> None:
    queue = Queue()
    queue.untaken.look()

    queue.is_idle = False
    assert queue.reason_after(1000) == ""
    queue.is_idle, queue.waiting = True, 0
    assert queue.reason_after(1000) == ""
    queue.waiting = 5
    assert queue.reason_after(MUTE_SECONDS) == ""
    assert "none of 5 waiting messages" in queue.reason_after(1000)


@pytest.mark.parametrize("before", [1, 20, 100])
def test_the_time_without_a_look_does_not_count(before: int) -> None:
    queue = Queue()
    queue.reason_after(before)

    queue.seconds += 302  # Redis is away: the beat ends before it looks

    assert queue.reason_after(1 + MUTE_SECONDS) == ""
    assert queue.untaken.seconds == MUTE_SECONDS
    assert queue.reason_after(1) != ""


def test_a_late_look_goes_on_with_the_count() -> None:
    queue = Queue()
    queue.reason_after(1 + MUTE_SECONDS)

    queue.seconds += GAP_SECONDS - 1

    assert "none of 1 waiting messages" in queue.reason_after(1)


def test_a_worker_whose_gate_stays_shut_is_live_and_not_ready(service: Service, start_worker: StartWorker) -> None:
    start_worker(DG_FLUX_KONTEXT_ENGINE="tests.integration.engines:mute")
    service.submit("a")

    def reason() -> str:
        (health,) = read_health(service.folder / "runtime")
        assert health.why_not_live(time.time()) is None
        return health.why_not_ready(time.time()) or ""

    eventually(lambda: "none of 1 waiting messages was taken" in reason())


def test_a_worker_whose_gate_stays_shut_ends_so_that_its_supervisor_starts_another(
    service: Service, start_worker: StartWorker
) -> None:
    worker = start_worker(DG_FLUX_KONTEXT_ENGINE="tests.integration.engines:mute", DG_UNTAKEN_SECONDS="45")
    service.submit("a")

    assert worker.exit_code() == EXIT_BROKEN

    assert "worker_broken reason=idle, but none of 1 waiting messages was taken" in worker.log
    assert service.ledger.get("a").state is JobState.QUEUED
