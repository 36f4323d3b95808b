"""Promise 3: a callback comes at least once under one id, whatever its receiver does, and no job waits for it."""

from __future__ import annotations

import time

import pytest

from jobs.schema import JobState
from tests.chaos.bench import HOOK, Bench
from tests.chaos.faults import (
    Fault,
    receiver_down,
    receiver_failing,
    receiver_hanging_up,
    receiver_redirecting,
    receiver_silent,
)
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.servers.http import Answer
from tests.waiting import eventually, passing, stretched

FAULTS = [receiver_down, receiver_failing, receiver_hanging_up, receiver_redirecting, receiver_silent]


@pytest.mark.parametrize("fault", FAULTS, ids=["down", "failing", "hanging up", "redirecting", "silent"])
def test_a_receiver_that_misbehaves_for_a_while_gets_every_callback_later(bench: Bench, fault: Fault) -> None:
    bench.start_worker("w1")
    with fault(bench):
        jobs = submit(bench, "a") | submit(bench, "b")
        assert bench.ended("b").state is JobState.SUCCEEDED
        eventually(lambda: "callback_pending" in bench.workers["w1"].log)
        assert bench.ledger.get("a").callback == "pending"

    wait_until_settled(bench)

    assert not bench.receiver.requests("/elsewhere")
    assert broken_promises(bench, jobs) == []


def test_a_receiver_that_is_gone_is_asked_once(bench: Bench) -> None:
    bench.receiver.answer(HOOK, Answer(410))
    bench.start_worker("w1")

    submit(bench, "a")

    eventually(lambda: bench.ledger.get("a").callback == "dropped")
    passing(2)
    assert len(bench.receiver.requests(HOOK)) == 1


def test_a_silent_receiver_holds_up_neither_jobs_nor_for_long_the_callbacks_of_others(bench: Bench) -> None:
    silent = bench.receiver.answer("/silent", Answer(delay_seconds=60))
    bench.start_worker("w1")
    for number in range(3):
        submit(bench, f"s{number}", callback={"url": silent})
    began_at = time.monotonic()
    submit(bench, "a")

    eventually(lambda: bench.ledger.get("a").callback == "delivered")

    assert time.monotonic() - began_at < stretched(10)
    assert {bench.ledger.get(f"s{number}").state for number in range(3)} == {JobState.SUCCEEDED}
