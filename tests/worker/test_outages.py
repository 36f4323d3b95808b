"""A store or a host that is away is waited for, by a clock that the tests move; what the job does itself is not."""

from __future__ import annotations

import pytest

from jobs.errors import EditFailure, ErrorCode, Outage, RejectJob, RetryJob, StopWorker
from jobs.ledger import Claim, Ledger
from jobs.queue import EditQueue
from jobs.schema import EditJob, JobState
from jobs.settings import load_settings
from tests.clock import ManualClock
from tests.servers.redis import RedisServer
from worker.events import Events
from worker.leases import Run
from worker.settings import Settings
from worker.settle import Settlement, pause_before_next_run

STORE_AWAY = Outage(ErrorCode.OUTPUT_UNAVAILABLE, "HTTP 503")
MINUTE = 60.0


def settlement(ledger: Ledger, settings: Settings) -> Settlement:
    return Settlement(settings, ledger, EditQueue(ledger.redis), Events())


def claim(outages: int = 0, attempt: int = 1) -> Claim:
    return Claim("a", "token", attempt, outages, 0.0, "{}")


def fail_until(ledger: Ledger, clock: ManualClock, doing: Settlement, failure: EditFailure, until_us: int) -> None:
    """Let every run of job `a` fail, as long as it is run and the time has not come."""
    while not ledger.get("a").state.is_terminal and clock.last_us < until_us:
        held = ledger.claim("a", "w1", lease_seconds=30)
        if isinstance(held, Claim):
            doing.failed(Run(held, 900), failure)
        clock.advance(1)
        ledger.promote()


def submit(ledger: Ledger) -> None:
    list(ledger.submit([EditJob(id="a", image=("s3://in/cat.png",), prompt="make it snow")], "s3://out"))


def test_a_store_that_is_away_for_five_minutes_costs_no_attempt(
    ledger: Ledger, clock: ManualClock, redis_server: RedisServer
) -> None:
    doing = settlement(ledger, load_settings(Settings, broker_url=redis_server.url))
    submit(ledger)
    fail_until(ledger, clock, doing, STORE_AWAY, clock.last_us + int(5 * MINUTE * 1e6))
    clock.advance(2 * MINUTE)
    ledger.promote()

    held = ledger.claim("a", "w1", lease_seconds=30)

    assert isinstance(held, Claim)
    assert held.attempt == 1
    assert 6 <= held.outages <= 12
    assert {attempt.reason for attempt in ledger.get("a").history} == {"output_unavailable"}


def test_a_store_that_never_comes_back_fails_the_job_after_ten_minutes(
    ledger: Ledger, clock: ManualClock, redis_server: RedisServer
) -> None:
    doing = settlement(ledger, load_settings(Settings, broker_url=redis_server.url))
    submit(ledger)
    began_us = clock.last_us

    fail_until(ledger, clock, doing, STORE_AWAY, began_us + int(60 * MINUTE * 1e6))

    record = ledger.get("a")
    assert record.state is JobState.FAILED
    assert record.result.error is not None
    assert (record.result.error.code, record.result.error.retryable) == (ErrorCode.OUTPUT_UNAVAILABLE, True)
    assert record.attempts == 1
    assert 7 * MINUTE < (clock.last_us - began_us) / 1e6 < 12.5 * MINUTE


def test_pauses_double_up_to_a_minute_until_patience_is_used_up() -> None:
    settings = load_settings(Settings, outage_seconds=190)

    pauses = [pause_before_next_run(STORE_AWAY, claim(outages), settings) for outages in range(9)]

    # 2 + 4 + 8 + 16 + 32 + 60 + 60 = 182
    assert pauses == [2, 4, 8, 16, 32, 60, 60, None, None]


def test_patience_of_zero_fails_a_job_at_its_first_outage() -> None:
    assert pause_before_next_run(STORE_AWAY, claim(), load_settings(Settings, outage_seconds=0)) is None


@pytest.mark.parametrize(
    ("failure", "pauses"),
    [
        (RetryJob(ErrorCode.ENGINE_FAILED, "it raised"), [2, 4, None]),
        (StopWorker(ErrorCode.WORKER_LOST, "the device is broken"), [0, 0, None]),
        (RejectJob(ErrorCode.INPUT_NOT_FOUND, "HTTP 404"), [None, None, None]),
    ],
)
def test_what_is_not_an_outage_has_its_few_attempts_whatever_outages_there_were(
    failure: EditFailure, pauses: list[float | None]
) -> None:
    settings = load_settings(Settings)

    assert [pause_before_next_run(failure, claim(20, attempt), settings) for attempt in (1, 2, 3)] == pauses
