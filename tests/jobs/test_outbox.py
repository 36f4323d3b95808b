"""Callbacks that wait to be told, on a real Redis, with a clock that the tests move."""

from __future__ import annotations

import redis

from jobs.errors import ErrorCode
from jobs.ledger import Ledger, Outbox, Progress
from jobs.schema import Callback, JobState
from tests.clock import ManualClock
from tests.jobs.lives import DONE, FAILED, HOOK, LEASE_SECONDS, begun, claimed, edit_job, fail, submit


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


def asks_for(*events: str) -> dict[str, object]:
    return {"callback": {"url": "https://example.org/hook", "events": list(events)}}


def pending(ledger: Ledger) -> list[tuple[str, str]]:
    return [(entry.event, entry.webhook_id) for entry in Outbox(ledger).pending()]


def test_the_start_is_told_once_a_round_to_those_who_ask_and_forgotten_with_the_end(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a", **asks_for("started")), edit_job("b", **asks_for("succeeded")))
    begun(ledger, "b")
    begun(ledger, "a")
    assert pending(ledger) == [("started", "msg_a_started")]
    (due,) = Outbox(ledger).take(10, hide_seconds=60)
    Outbox(ledger).settle(due.webhook_id, "pending", "HTTP 500", delay_seconds=5)
    assert (due.is_news, pending(ledger)) == (True, []), "news are tried once"

    clock.advance(LEASE_SECONDS + 1)
    ledger.expire(max_attempts=3)
    claim = begun(ledger, "a")
    assert pending(ledger) == [], "it has started before"
    ledger.finish("a", claim.token, JobState.FAILED, FAILED)
    ledger.retry("a")
    claim = begun(ledger, "a")
    assert pending(ledger) == [("started", "msg_a_started_2")]
    ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)
    assert pending(ledger) == []


def test_progress_is_told_every_five_seconds_and_only_the_latest(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("a", **asks_for("progress", "succeeded")))
    claim = begun(ledger, "a")

    def at_step(step: int) -> list[str]:
        ledger.renew("a", claim.token, LEASE_SECONDS, Progress("sampling", step, 30))
        return [webhook for _, webhook in pending(ledger)]

    assert at_step(0) == []
    assert at_step(1) == ["msg_a_progress_1_1"]
    clock.advance(4)
    assert at_step(5) == ["msg_a_progress_1_1"]
    clock.advance(2)
    assert at_step(7) == ["msg_a_progress_1_7"], "what was not sent yet is worth nothing any more"
    clock.advance(6)
    assert at_step(7) == ["msg_a_progress_1_7"], "a step is told once"
    ledger.finish("a", claim.token, JobState.SUCCEEDED, DONE)
    assert pending(ledger) == [("succeeded", "msg_a_succeeded")]
    assert ledger.get("a").callback == "pending"
    assert Outbox(ledger).drop(["msg_a_progress_1_7"]) == 0
