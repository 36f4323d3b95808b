"""Callbacks that wait to be told, on a real Redis, with a clock that the tests move."""

from __future__ import annotations

import redis

from jobs.errors import ErrorCode
from jobs.ledger import Ledger, Outbox
from jobs.schema import Callback, JobState
from tests.clock import ManualClock
from tests.jobs.lives import DONE, FAILED, HOOK, claimed, edit_job, fail, submit


def test_only_the_events_asked_for_are_called_back(ledger: Ledger) -> None:
    hook = Callback(url="https://example.org/hook", events=("failed",))
    submit(ledger, edit_job("good", callback=hook), edit_job("bad", callback=hook))

    ledger.finish("good", claimed(ledger, "good").token, JobState.SUCCEEDED, DONE)
    ledger.finish("bad", claimed(ledger, "bad").token, JobState.FAILED, FAILED)

    assert [due.job_id for due in Outbox(ledger).take(10, hide_seconds=60)] == ["bad"]


def test_each_end_of_a_retried_job_is_told_under_an_id_of_its_own(ledger: Ledger) -> None:
    submit(ledger, edit_job("a", callback=HOOK))
    fail(ledger, "a")
    (first,) = Outbox(ledger).take(10, hide_seconds=60)
    Outbox(ledger).settle(first.webhook_id, "delivered", "HTTP 200")

    ledger.retry("a")
    assert ledger.get("a").callback is None
    fail(ledger, "a")

    (second,) = Outbox(ledger).take(10, hide_seconds=60)
    assert (first.webhook_id, second.webhook_id) == ("msg_a_failed", "msg_a_failed_2")


def test_a_callback_under_way_tells_the_end_it_was_made_for_though_the_job_is_open_again(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a", callback=HOOK))
    fail(ledger, "a", ErrorCode.OUT_OF_MEMORY)
    told_before = ledger.get("a").event()
    ledger.retry("a")

    (former,) = Outbox(ledger).take(10, hide_seconds=60)
    assert Outbox(ledger).ending(former).event() == told_before
    ledger.finish("a", claimed(ledger, "a").token, JobState.SUCCEEDED, DONE)
    Outbox(ledger).settle(former.webhook_id, "delivered", "HTTP 200")

    assert ledger.get("a").callback == "pending", "the callback of the latest end"
    (latest,) = Outbox(ledger).take(10, hide_seconds=60)
    assert Outbox(ledger).ending(latest).event().type == "edit.succeeded"
    assert Outbox(ledger).ending(former).event() == told_before


def test_a_callback_is_replayed_or_dropped_by_hand(ledger: Ledger, redis_client: redis.Redis) -> None:
    submit(ledger, edit_job("a", callback=HOOK))
    fail(ledger, "a")

    assert Outbox(ledger).drop(["msg_a_failed", "msg_unheard_of"]) == 1
    assert (ledger.get("a").callback, ledger.queue_counts()["callbacks"]) == ("dropped", 0)
    assert Outbox(ledger).drop(["msg_a_failed"]) == 0

    assert redis_client.ttl("dg:dropped") > 0, "the list of what was given up does not stay for ever"
    assert Outbox(ledger).replay(["msg_a_failed", "msg_unheard_of"]) == 1
    assert ledger.get("a").callback == "pending"
    assert redis_client.zcard("dg:dropped") == 0
    (due,) = Outbox(ledger).take(10, hide_seconds=60)
    Outbox(ledger).settle(due.webhook_id, "delivered", "HTTP 200")
    assert Outbox(ledger).replay(["msg_a_failed"]) == 1, "a receiver may have lost what it had taken"


def test_a_taken_callback_comes_again_unless_it_is_settled(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a", callback={"url": "https://example.org/hook"}))
    ledger.cancel("a")
    assert len(Outbox(ledger).take(10, hide_seconds=60)) == 1
    assert Outbox(ledger).take(10, hide_seconds=60) == []

    clock.advance(61)
    (due,) = Outbox(ledger).take(10, hide_seconds=60)
    Outbox(ledger).settle(due.webhook_id, "pending", "HTTP 500", delay_seconds=300)
    clock.advance(200)
    assert Outbox(ledger).take(10, hide_seconds=60) == []
    clock.advance(101)
    (again,) = Outbox(ledger).take(10, hide_seconds=60)
    Outbox(ledger).settle(again.webhook_id, "delivered", "HTTP 200")

    assert (again.webhook_id, again.attempts) == (due.webhook_id, 1)
    assert ledger.get("a").callback == "delivered"
    assert ledger.queue_counts()["callbacks"] == 0
