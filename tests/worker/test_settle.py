"""The events of a run's end say what became of its job, not what was tried."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.errors import EditFailure, ErrorCode, HandBack, Outage
from jobs.ledger import Ledger
from jobs.queue import EditQueue
from jobs.schema import JobState
from jobs.settings import load_settings
from tests.clock import ManualClock
from tests.jobs.lives import LEASE_SECONDS, claimed, edit_job, submit
from tests.servers.redis import RedisServer
from worker.events import Event, Events
from worker.leases import Run
from worker.reconciler import Reconciler
from worker.settings import Settings
from worker.settle import Settlement


def cancel(ledger: Ledger, clock: ManualClock) -> None:
    ledger.cancel("a")


def lose(ledger: Ledger, clock: ManualClock) -> None:
    clock.advance(LEASE_SECONDS + 1)
    ledger.expire(max_attempts=3)


def nothing(ledger: Ledger, clock: ManualClock) -> None:
    pass


@pytest.mark.parametrize("failure", [HandBack(), Outage(ErrorCode.OUTPUT_UNAVAILABLE, "HTTP 503")])
@pytest.mark.parametrize(
    ("meanwhile", "said", "state"),
    [
        (nothing, "job_requeued", JobState.QUEUED),
        (cancel, "job_cancelled", JobState.CANCELLED),
        (lose, "lease_lost", JobState.QUEUED),
    ],
)
def test_a_run_that_gives_its_job_back_says_what_became_of_it(
    meanwhile: Callable[[Ledger, ManualClock], None],
    said: str,
    state: JobState,
    failure: EditFailure,
    ledger: Ledger,
    clock: ManualClock,
    redis_server: RedisServer,
) -> None:
    settings, heard = load_settings(Settings, broker_url=redis_server.url), list[Event]()
    settlement = Settlement(settings, ledger, EditQueue(ledger.redis), Events(heard.append))
    submit(ledger, edit_job("a"))
    run = Run(claimed(ledger, "a"), 900)
    meanwhile(ledger, clock)

    settlement.failed(run, failure)

    assert ([event.name for event in heard], ledger.get("a").state) == ([said], state)


def test_what_was_to_be_cancelled_when_its_worker_died_is_not_said_to_have_failed(
    ledger: Ledger, clock: ManualClock, redis_server: RedisServer
) -> None:
    heard = list[Event]()
    reconciler = Reconciler(ledger, EditQueue(ledger.redis), 3, Events(heard.append))
    submit(ledger, edit_job("a"))
    claimed(ledger, "a")
    ledger.cancel("a")
    clock.advance(LEASE_SECONDS + 1)

    reconciler.reconcile(ledger.now_us())

    assert [event.name for event in heard] == ["lost_job_cancelled", "reconciled"]
