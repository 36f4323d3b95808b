"""What a death leaves behind is put right, on a real Redis, with a clock that the tests move."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import redis

from jobs.celery_app import make_app
from jobs.ledger import Claim, Ledger, Outbox
from jobs.queue import QUEUE, TASK, EditQueue, count_messages, next_messages
from jobs.schema import EditJob
from tests.clock import ManualClock
from tests.servers.redis import RedisServer
from worker.events import Events
from worker.reconciler import Reconciler

JOB = {"image": "s3://in/cat.png", "prompt": "make it snow"}


@pytest.fixture
def queue(redis_client: redis.Redis) -> EditQueue:
    return EditQueue(redis_client)


@pytest.fixture
def reconciler(ledger: Ledger, queue: EditQueue) -> Reconciler:
    return Reconciler(ledger, queue, max_attempts=3, events=Events())


def submit(ledger: Ledger, *job_ids: str) -> None:
    jobs = [EditJob.model_validate({**JOB, "id": job_id}) for job_id in job_ids]
    assert [submission.verdict for submission in ledger.submit(jobs, "s3://out")] == ["created"] * len(jobs)


def in_queue(client: redis.Redis) -> Sequence[str]:
    return sorted(next_messages(client, 100))


def pop(client: redis.Redis, count: int = 1) -> None:
    """Take messages as a worker does that then dies before it claims."""
    for _ in range(count):
        client.rpop(QUEUE)


def reconcile_for(seconds: int, reconciler: Reconciler, ledger: Ledger, clock: ManualClock) -> None:
    """As a fleet does, once a second."""
    for _ in range(seconds):
        clock.advance(1)
        reconciler.reconcile(ledger.now_us())


def test_a_message_that_was_popped_and_never_claimed_is_sent_again(
    ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "a")
    queue.send(["a"])
    pop(redis_client)

    reconciler.reconcile(ledger.now_us())
    assert in_queue(redis_client) == [], "it may have been popped just now by a worker that is about to claim it"
    clock.advance(6)
    reconciler.reconcile(ledger.now_us())

    assert in_queue(redis_client) == ["a"]
    clock.advance(1)
    reconciler.reconcile(ledger.now_us())
    assert in_queue(redis_client) == ["a"], "sent once, not at every tick"


def test_a_job_whose_message_was_never_sent_is_sent(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "a", "b")

    reconcile_for(6, reconciler, ledger, clock)

    assert in_queue(redis_client) == ["a", "b"]


def test_a_long_queue_is_left_alone_and_gets_the_one_message_that_it_lacks(
    ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "lost")
    clock.advance(10)
    waiting = [f"job-{number:04d}" for number in range(300)]
    submit(ledger, *waiting)
    queue.send(waiting)
    clock.advance(3600)

    reconcile_for(60, reconciler, ledger, clock)

    assert redis_client.llen(QUEUE) == 301
    assert ledger.position("lost") == 0, "its message was lost, not its place"


def test_a_doubled_message_stands_for_a_lost_one(
    ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "done", "lost", "waiting")
    claim = ledger.claim("done", "w1", 3600)
    assert isinstance(claim, Claim)
    queue.send(["done", "done"])

    reconcile_for(60, reconciler, ledger, clock)

    assert in_queue(redis_client) == ["done", "done"], "whoever takes them gets the two jobs that wait"
    claims = [ledger.claim_best("w1", 30, hint="done") for _ in range(2)]
    assert [claim.job_id for claim in claims if isinstance(claim, Claim)] == ["lost", "waiting"]


def test_messages_that_are_too_few_only_now_and_then_are_on_their_way(
    ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "a", "b")
    for _ in range(20):
        pop(redis_client)
        reconcile_for(2, reconciler, ledger, clock)
        queue.send(["a"] * (2 - redis_client.llen(QUEUE)))
        reconcile_for(1, reconciler, ledger, clock)

    assert redis_client.llen(QUEUE) == 2


def test_a_message_of_a_client_with_a_priority_of_celery_counts(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    submit(ledger, "a")
    make_app(redis_server.url).send_task(TASK, ["a"], queue=QUEUE, priority=6)

    reconcile_for(60, reconciler, ledger, clock)

    assert count_messages(redis_client) == 1


def test_an_expired_lease_and_a_back_off_that_is_over_are_sent_again(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    submit(ledger, "silent", "later")
    ledger.claim("silent", "w1", lease_seconds=30)
    claim = ledger.claim("later", "w1", lease_seconds=30)
    assert isinstance(claim, Claim)
    ledger.requeue("later", claim.token, "input_unreachable", delay_seconds=20)

    reconciler.reconcile(ledger.now_us())
    assert in_queue(redis_client) == []
    clock.advance(31)
    reconciler.reconcile(ledger.now_us())

    assert in_queue(redis_client) == ["later", "silent"]


def test_after_redis_was_out_of_reach_the_holders_of_leases_may_renew_them_first(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(ledger, "a")
    claim = ledger.claim("a", "w1", lease_seconds=30)
    assert isinstance(claim, Claim)
    clock.advance(40)
    with monkeypatch.context() as patch:
        patch.setattr("worker.reconciler.SILENCE_SECONDS", -1)
        reconciler.reconcile(ledger.now_us())

    assert ledger.renew("a", claim.token, lease_seconds=30) == "held"
    reconciler.reconcile(ledger.now_us())
    assert ledger.get("a").attempts == 1
    assert ledger.get("a").history == ()


def test_one_tick_takes_back_every_job_of_a_fleet_that_went_silent_together(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    names = [f"job-{number}" for number in range(300)]
    submit(ledger, *names)
    for name in names:
        ledger.claim(name, "w1", lease_seconds=30)
    clock.advance(31)

    reconciler.reconcile(ledger.now_us())

    assert redis_client.llen(QUEUE) == 300


def test_a_fleet_reconciles_once_in_a_while_not_once_per_worker(
    ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock, redis_client: redis.Redis
) -> None:
    another = Reconciler(ledger, queue, max_attempts=3, events=Events())
    submit(ledger, "a")
    another.tick()
    clock.advance(3.9)
    another.tick()
    clock.advance(0.5)

    reconciler.tick()
    assert in_queue(redis_client) == [], "another worker has just done it"
    clock.advance(1)  # and the death of that worker would not be missed
    reconciler.tick()

    assert in_queue(redis_client) == ["a"]


@pytest.mark.parametrize("hours", [1, 100])
def test_a_clock_that_was_set_back_delays_no_repair(
    hours: float, ledger: Ledger, queue: EditQueue, reconciler: Reconciler, clock: ManualClock
) -> None:
    submit(ledger, "silent", "held", "later", "lost")
    ledger.claim("silent", "w1", lease_seconds=30)
    held, later = ledger.claim("held", "w2", lease_seconds=30), ledger.claim("later", "w2", lease_seconds=30)
    assert isinstance(held, Claim)
    assert isinstance(later, Claim)
    ledger.requeue("later", later.token, "input_unreachable", delay_seconds=20)
    reconciler.tick()
    clock.set_back(3600 * hours)

    clock.advance(2)
    reconciler.tick()
    assert ledger.renew("held", held.token, lease_seconds=30) == "held"
    for _ in range(16):
        clock.advance(2)
        reconciler.tick()
        ledger.renew("held", held.token, lease_seconds=30)

    assert count_messages(ledger.redis) == 3
    assert ledger.get("held").attempts == 1
    assert ledger.get("held").history == ()


def test_a_callback_is_due_when_it_was_due_before_the_clock_was_set_back(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock
) -> None:
    list(ledger.submit([EditJob.model_validate({**JOB, "id": "a", "callback": {"url": "https://a.org/"}})], "s3://out"))
    ledger.cancel("a")
    (due,) = Outbox(ledger).take(1, hide_seconds=60)
    Outbox(ledger).settle(due.webhook_id, "pending", "HTTP 503", delay_seconds=600)
    reconciler.tick()
    clock.set_back(5 * 3600)
    clock.advance(2)
    reconciler.tick()

    clock.advance(590)
    assert Outbox(ledger).take(1, hide_seconds=60) == []
    clock.advance(10)
    assert Outbox(ledger).take(1, hide_seconds=60) != []


def test_a_clock_set_ahead_takes_no_job_from_a_worker_that_lives(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock
) -> None:
    submit(ledger, "held", "silent")
    claim = ledger.claim("held", "w1", lease_seconds=30)
    assert isinstance(claim, Claim)
    ledger.claim("silent", "w2", lease_seconds=30)
    reconciler.tick()

    clock.advance(5 * 3600)
    reconciler.tick()
    ledger.renew("held", claim.token, lease_seconds=30)
    clock.advance(2)
    reconciler.tick()

    assert ledger.get("held").history == ()
    assert [attempt.reason for attempt in ledger.get("silent").history] == ["worker_lost"]


def test_a_lease_is_judged_by_the_time_that_the_turn_saw(
    ledger: Ledger, reconciler: Reconciler, clock: ManualClock
) -> None:
    submit(ledger, "a")
    ledger.claim("a", "w1", lease_seconds=30)
    seen_us = ledger.now_us()
    clock.advance(3600)

    reconciler.reconcile(seen_us)

    assert ledger.get("a").history == ()
