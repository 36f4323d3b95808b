"""Callbacks over hours and days, by a clock that the tests move, to a real receiver."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event, Thread

import pytest
import redis
from standardwebhooks import WebhookVerificationError

from jobs.ledger import Claim, DueCallback, Ledger, Outbox, Progress
from jobs.names import host_of
from jobs.schema import EditJob
from jobs.settings import load_settings
from storage.guarded_http import guarded_client
from tests.clock import ManualClock
from tests.servers.http import Answer, HttpServer, Request
from tests.waiting import PATIENCE_SECONDS, eventually, stretched
from worker.background import Periodic
from worker.callbacks import DELAYS_SECONDS, HOUR, PARALLEL, CallbackSender, Reply, judge, pause_of_postponed
from worker.events import Events
from worker.settings import Settings

OLD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
NEW = "whsec_c2VjcmV0IG9mIHRoZSBuZXh0IHF1YXJ0ZXI="
HOOK = "/hook"


def middle(low: float, high: float) -> float:
    """No jitter."""
    return (low + high) / 2


def end_job(ledger: Ledger, job_id: str, url: str) -> str:
    """A job that has ended and asks for a callback; the callback's id."""
    job = EditJob.model_validate({"id": job_id, "image": "s3://in/a.png", "prompt": "snow", "callback": {"url": url}})
    list(ledger.submit([job], "s3://out"))
    ledger.cancel(job_id)
    return f"msg_{job_id}_cancelled"


@contextmanager
def sending(
    ledger: Ledger, secrets: str = OLD, timeout_seconds: float = 5, hosts: tuple[str, ...] = ("127.0.0.1",)
) -> Iterator[CallbackSender]:
    settings = load_settings(
        Settings, callback_secret=secrets, private_hosts=hosts, callback_timeout_seconds=timeout_seconds
    )
    sender = CallbackSender(settings, ledger, guarded_client(settings, timeout_seconds), Events(), middle)
    try:
        yield sender
    finally:
        sender.close()


Attempts = Callable[[str], int]


@pytest.fixture
def attempts(redis_client: redis.Redis) -> Attempts:
    """How often a callback was tried."""
    return lambda webhook: int(redis_client.hget(f"dg:callback:{webhook}", "attempts") or 0)


def test_a_receiver_that_never_recovers_is_tried_for_three_days_under_one_id_and_then_dropped(
    ledger: Ledger, clock: ManualClock, http_server: HttpServer, attempts: Attempts
) -> None:
    webhook = end_job(ledger, "a", http_server.answer(HOOK, Answer(500)))
    began_us = clock.last_us

    with sending(ledger) as sender:
        assert sender.tick() == 1
        eventually(lambda: attempts(webhook) == 1)
        for number, delay in enumerate(DELAYS_SECONDS, start=2):
            clock.advance(delay - 1)
            assert sender.tick() == 0, f"attempt {number} is not due yet"
            clock.advance(2)
            assert sender.tick() == 1, f"attempt {number} is due"
            eventually(lambda expected=number: attempts(webhook) == expected)  # type: ignore[misc]
        clock.advance(24 * HOUR)
        assert sender.tick() == 0

    requests = http_server.requests(HOOK)
    days = (clock.last_us - began_us) / 1e6 / (24 * HOUR) - 1
    assert 3 <= days <= 3.5
    assert len(requests) == len(DELAYS_SECONDS) + 1
    assert {request.headers["webhook-id"] for request in requests} == {webhook}
    assert len({request.body for request in requests}) == 1
    assert len({request.headers["webhook-timestamp"] for request in requests}) == len(requests)
    assert ledger.get("a").callback == "dropped"
    assert ledger.queue_counts()["callbacks"] == 0


@pytest.mark.parametrize(
    ("reply", "verdict", "delay_seconds"),
    [
        (Reply(204, "HTTP 204"), "delivered", 0),
        (Reply(410, "HTTP 410"), "dropped", 0),
        (Reply(0, "a private address", is_refused=True), "dropped", 0),
        (Reply(0, "ConnectError"), "pending", 5),
        (Reply(302, "HTTP 302"), "pending", 5),
        (Reply(404, "HTTP 404"), "pending", 5),
        (Reply(503, "HTTP 503", retry_after_seconds=120), "pending", 120),
        (Reply(429, "HTTP 429", retry_after_seconds=1), "pending", 5),
        (Reply(503, "HTTP 503", retry_after_seconds=-60), "pending", 5),
        (Reply(503, "HTTP 503", retry_after_seconds=1e12), "pending", 24 * HOUR),
    ],
)
def test_what_follows_from_a_first_answer(reply: Reply, verdict: str, delay_seconds: float) -> None:
    assert judge(reply, 1, middle) == (verdict, delay_seconds)


def test_pauses_are_spread_by_a_fifth() -> None:
    delays = [judge(Reply(500, "HTTP 500"), 4)[1] for _ in range(200)]

    assert 480 <= min(delays) < max(delays) <= 720
    assert max(delays) - min(delays) > 60


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured_as_seconds_and_as_a_date(
    ledger: Ledger, clock: ManualClock, http_server: HttpServer, attempts: Attempts, as_date: bool
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    busy = Answer(503, headers={"Retry-After": date if as_date else "600"})
    webhook = end_job(ledger, "a", http_server.answer(HOOK, busy, Answer(200)))

    with sending(ledger) as sender:
        sender.tick()
        eventually(lambda: attempts(webhook) == 1)
        clock.advance(590)
        assert sender.tick() == 0
        clock.advance(20)
        assert sender.tick() == 1
        eventually(lambda: ledger.get("a").callback == "delivered")


def test_while_secrets_rotate_receivers_with_the_old_and_with_the_new_one_both_accept(
    redis_client: redis.Redis, http_server: HttpServer
) -> None:
    ledger = Ledger(redis_client)  # by the real time, which receivers compare theirs with

    def delivered(job_id: str, secrets: str) -> Request:
        end_job(ledger, job_id, http_server.answer(f"/{job_id}", Answer(200)))
        with sending(ledger, secrets) as sender:
            sender.tick()
            eventually(lambda: ledger.get(job_id).callback == "delivered")
        (request,) = http_server.requests(f"/{job_id}")
        return request

    before, during, after = delivered("a", OLD), delivered("b", f"{NEW} {OLD}"), delivered("c", NEW)

    for request, secret in ((before, OLD), (during, OLD), (during, NEW), (after, NEW)):
        assert request.verified(secret)["type"] == "edit.cancelled"
    for request, secret in ((before, NEW), (after, OLD)):
        with pytest.raises(WebhookVerificationError):
            request.verified(secret)


def test_a_receiver_cannot_pass_its_callbacks_on_to_another(redis_client: redis.Redis, http_server: HttpServer) -> None:
    ledger = Ledger(redis_client)
    here = http_server.answer("/here", Answer(200))
    there = http_server.answer("/there", Answer(200)).replace("127.0.0.1", "localhost")
    for job_id, url in (("a", here), ("b", there)):
        end_job(ledger, job_id, url)
    settings = load_settings(
        Settings, callback_secret=OLD, callback_secrets=f"localhost={NEW}", private_hosts=("127.0.0.1", "localhost")
    )
    sender = CallbackSender(settings, ledger, guarded_client(settings, 5), Events(), middle)
    sender.tick()
    eventually(lambda: {ledger.get(name).callback for name in "ab"} == {"delivered"})
    sender.close()

    (to_here,), (to_there,) = http_server.requests("/here"), http_server.requests("/there")
    port = http_server.url("/").split(":")[2].strip("/")
    assert to_here.verified(OLD)["receiver"] == f"127.0.0.1:{port}"
    assert to_there.verified(NEW)["receiver"] == f"localhost:{port}"
    with pytest.raises(WebhookVerificationError):
        to_there.verified(OLD)


def test_a_redirect_is_not_followed_and_an_endless_answer_not_read(
    ledger: Ledger, http_server: HttpServer, attempts: Attempts
) -> None:
    elsewhere = http_server.answer("/elsewhere", Answer(200))
    redirected = end_job(ledger, "redirected", http_server.answer("/moved", Answer.redirect(elsewhere, 307)))
    end_job(ledger, "endless", http_server.answer("/endless", Answer(200, missing_bytes=10**12)))

    with sending(ledger) as sender:
        sender.tick()
        eventually(lambda: attempts(redirected) == 1)
        eventually(lambda: ledger.get("endless").callback == "delivered")

    assert ledger.get("redirected").callback == "pending"
    assert http_server.requests("/elsewhere") == []


def test_a_private_address_is_never_called(ledger: Ledger, http_server: HttpServer) -> None:
    end_job(ledger, "a", http_server.answer(HOOK, Answer(200)))

    with sending(ledger, hosts=()) as sender:
        sender.tick()
        eventually(lambda: ledger.get("a").callback == "dropped")

    assert http_server.requests(HOOK) == []


def test_a_receiver_that_never_answers_takes_one_slot_and_the_others_go_on(
    ledger: Ledger, clock: ManualClock, http_server: HttpServer
) -> None:
    silent = http_server.answer("/silent", Answer(delay_seconds=60)).replace("127.0.0.1", "localhost")
    for number in range(2 * PARALLEL):
        end_job(ledger, f"silent-{number}", silent)

    def others_told() -> int:
        return len({request.headers["webhook-id"] for request in http_server.requests(HOOK)})

    def go_on() -> bool:
        clock.advance(1)
        sender.tick()
        return others_told() == 30

    with sending(ledger, timeout_seconds=1, hosts=("127.0.0.1", "localhost")) as sender:
        sender.tick()
        eventually(lambda: len(http_server.requests("/silent")) >= PARALLEL)
        for number in range(30):
            end_job(ledger, f"other-{number}", http_server.answer(HOOK, Answer(200)))
        eventually(go_on)

    # The first attempts could not know; after them one at a time was tried, each for a second.
    assert len(http_server.requests("/silent")) < 2 * PARALLEL


def test_a_callback_given_up_by_hand_during_its_attempt_stays_given_up(
    ledger: Ledger, http_server: HttpServer, redis_client: redis.Redis
) -> None:
    webhook = end_job(ledger, "a", http_server.answer(HOOK, Answer(500, delay_seconds=0.3)))

    with sending(ledger) as sender:
        sender.tick()
        eventually(lambda: http_server.requests(HOOK))
        assert Outbox(ledger).drop([webhook]) == 1

    assert ledger.get("a").callback == "dropped"
    assert redis_client.zcard("dg:outbox") == 0


@pytest.mark.parametrize(
    ("silent_seconds", "pending", "pause_seconds"),
    [
        (0, 1, 10),
        (100, 1, 25),  # a quarter of the silence
        (3 * 24 * HOUR, 1, 600),  # not longer, for a receiver that is back
        (100, 5_000, 100),  # 50 of them a second, whoever looks
        (3 * 24 * HOUR, 100_000, 2000),
    ],
)
def test_a_postponed_callback_is_looked_at_the_less_the_longer_the_silence_and_the_more_of_them_there_are(
    silent_seconds: float, pending: int, pause_seconds: float
) -> None:
    assert pause_of_postponed(silent_seconds, pending) == pause_seconds


def test_a_callback_whose_silent_receiver_is_being_called_waits_without_an_attempt(
    ledger: Ledger, clock: ManualClock, attempts: Attempts, redis_client: redis.Redis
) -> None:
    url = "http://127.0.0.1:9/hook"
    webhook = end_job(ledger, "a", url)

    with sending(ledger) as sender:
        receivers, receiver = sender._receivers, host_of(url)
        receivers.note(receiver, is_silent=True)
        with receivers.turn(receiver):
            assert sender.tick() == 1
            due_us = clock.last_us + 9e6
            eventually(lambda: due_us < (redis_client.zscore("dg:outbox", webhook) or 0.0) < due_us + 20e6)
            clock.advance(8)
            assert sender.tick() == 0
        assert attempts(webhook) == 0


def test_a_callback_that_is_taken_while_its_sender_closes_is_sent_by_another_at_once(
    ledger: Ledger, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_job(ledger, "a", http_server.answer(HOOK, Answer(200)))

    with sending(ledger) as closing, sending(ledger) as other:
        take = closing._outbox.take

        def take_late(limit: int, hide_seconds: float) -> list[DueCallback]:
            taken = take(limit, hide_seconds)
            closing.close()
            return taken

        monkeypatch.setattr(closing._outbox, "take", take_late)
        assert closing.tick() == 0
        assert closing.tick() == 0, "a closed sender takes nothing"
        assert other.tick() == 1
        eventually(lambda: ledger.get("a").callback == "delivered")


def test_a_sender_that_closes_waits_for_no_silent_receiver_and_its_callback_is_due_at_once(
    ledger: Ledger, http_server: HttpServer, attempts: Attempts
) -> None:
    slow = Answer(200, delay_seconds=2 * PATIENCE_SECONDS)
    webhook = end_job(ledger, "a", http_server.answer(HOOK, slow, Answer(200)))

    with sending(ledger, timeout_seconds=PATIENCE_SECONDS) as closing, sending(ledger) as other:
        closing.tick()
        eventually(lambda: http_server.requests(HOOK))
        started = time.monotonic()
        closing.close()
        assert time.monotonic() - started < stretched(5)
        assert attempts(webhook) == 0, "the receiver has refused nothing"
        assert other.tick() == 1
        eventually(lambda: ledger.get("a").callback == "delivered")


def test_a_sender_that_closes_ends_what_it_began_and_hides_nothing_else(
    ledger: Ledger, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"job-{number}" for number in range(3 * PARALLEL)]
    for name in names:
        end_job(ledger, name, http_server.answer(HOOK, Answer(200)))
    begun, may_end = list[str](), Event()

    def deliver(due: DueCallback) -> None:
        begun.append(due.webhook_id)
        may_end.wait(PATIENCE_SECONDS)

    def others_are_sent() -> bool:
        other.tick()
        return sum(ledger.get(name).callback == "delivered" for name in names) == 2 * PARALLEL

    with sending(ledger) as closing, sending(ledger) as other:
        monkeypatch.setattr(closing, "_deliver", deliver)
        ticks = Periodic("callbacks", 0.001, closing.tick, Events())
        ticks.start()
        eventually(lambda: len(begun) == PARALLEL)
        end = Thread(target=closing.close)
        end.start()
        eventually(closing._is_closed.is_set)
        may_end.set()
        end.join()
        ticks.stop(PATIENCE_SECONDS)
        eventually(others_are_sent)

    assert len(begun) == PARALLEL


def begin_job(ledger: Ledger, job_id: str, url: str, *events: str) -> str:
    """A job that is being worked on and asks for news; the token of its run."""
    fields = {"id": job_id, "image": "s3://in/a.png", "prompt": "snow", "callback": {"url": url, "events": events}}
    list(ledger.submit([EditJob.model_validate(fields)], "s3://out"))
    claim = ledger.claim(job_id, "w1", 600)
    assert isinstance(claim, Claim)
    ledger.spend(job_id, claim.token)
    return claim.token


def test_news_of_a_running_job_are_sent_once_and_say_how_far_it_is(
    ledger: Ledger, clock: ManualClock, http_server: HttpServer
) -> None:
    url = http_server.answer(HOOK, Answer(500))
    token = begin_job(ledger, "a", url, "started", "progress")

    with sending(ledger) as sender:
        assert sender.tick() == 1
        ledger.renew("a", token, 600, Progress("sampling", 3, 30))
        assert sender.tick() == 1
        eventually(lambda: len(http_server.requests(HOOK)) == 2 and not list(Outbox(ledger).pending()))
        clock.advance(3600)
        assert sender.tick() == 0, "they are not tried again"

    bodies = {body["type"]: body for request in http_server.requests(HOOK) for body in [json.loads(request.body)]}
    started, progress = bodies["edit.started"], bodies["edit.progress"]
    assert (started["data"]["job_id"], started["data"]["state"]) == ("a", "running")
    assert "progress" not in started
    assert progress["progress"] == {"stage": "sampling", "step": 3, "total_steps": 30}
    assert progress["receiver"] == host_of(url)
    assert ledger.get("a").callback is None
    assert list(Outbox(ledger).dropped()) == []


def test_news_that_the_end_overtakes_and_those_for_a_silent_receiver_are_not_sent(
    ledger: Ledger, http_server: HttpServer
) -> None:
    url = http_server.answer(HOOK, Answer(204))
    begin_job(ledger, "a", url, "started")
    begin_job(ledger, "b", url, "started")

    with sending(ledger) as sender:
        (taken, other) = Outbox(ledger).take(2, hide_seconds=60)
        ledger.scripts.redis.hset(f"dg:job:{taken.job_id}", "state", "queued")
        sender._deliver(taken)
        sender._receivers.note(host_of(url), is_silent=True)
        with sender._receivers.turn(host_of(url)):
            sender._deliver(other)

    assert http_server.requests(HOOK) == []
    assert list(Outbox(ledger).pending()) == []
