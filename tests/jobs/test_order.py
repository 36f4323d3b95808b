"""Which job is taken next, and what a worker that goes silent costs whom; on a real Redis."""

from __future__ import annotations

import pytest

from jobs.errors import ErrorCode
from jobs.ledger import Claim, Ledger, Refusal
from jobs.ledger.repairs import MOST_LOSSES
from jobs.schema import JobState
from tests.clock import ManualClock
from tests.jobs.lives import LEASE_SECONDS, OUTPUT_ROOT, begun, claimed, edit_job, submit


def taken(ledger: Ledger, most: int = 1000, is_begun: bool = False) -> list[str]:
    """Claim the best job again and again, and begin to work on each if that is wanted; the ids in that order."""
    claims = (ledger.claim_best("w1", LEASE_SECONDS) for _ in range(most))
    found = [claim for claim in claims if isinstance(claim, Claim)]
    for claim in found if is_begun else ():
        assert ledger.spend(claim.job_id, claim.token)
    return [claim.job_id for claim in found]


def names(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def test_jobs_are_taken_by_age(ledger: Ledger) -> None:
    submit(ledger, *(edit_job(name) for name in ("c", "a", "b")))

    assert taken(ledger, 4) == ["c", "a", "b"]


def test_higher_priority_goes_first(ledger: Ledger) -> None:
    for name, priority in (("l", "low"), ("n", "normal"), ("h", "high"), ("n2", "normal")):
        submit(ledger, edit_job(name, priority=priority))

    assert taken(ledger, 5) == ["h", "n", "n2", "l"]


def test_tenants_take_turns_so_that_a_long_table_delays_nobody_for_long(ledger: Ledger) -> None:
    submit(ledger, *(edit_job(name, tenant="lab") for name in names("row", 100)))
    assert taken(ledger, 10) == names("row", 10)

    submit(ledger, edit_job("one", tenant="shop"), edit_job("two", tenant="shop"), edit_job("nobody"))

    order = taken(ledger, 10)
    assert order.index("one") <= 2
    assert order.index("nobody") <= 2
    assert order.index("two") <= 5
    assert [name for name in order if name.startswith("row")] == [f"row{10 + number}" for number in range(7)]


def test_a_tenant_that_went_away_has_saved_up_no_turns(ledger: Ledger) -> None:
    submit(ledger, edit_job("early", tenant="rare"))
    submit(ledger, *(edit_job(name, tenant="lab") for name in names("row", 50)))
    taken(ledger, 31)

    submit(ledger, *(edit_job(name, tenant="rare") for name in names("late", 10)))

    order = taken(ledger, 10)
    assert sum(name.startswith("late") for name in order) == 5


def test_what_a_worker_lost_goes_before_everything_and_what_waits_for_a_back_off_keeps_its_place(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("lost", priority="low"), edit_job("back"), edit_job("third"))
    begun(ledger, "lost")
    back = begun(ledger, "back")
    ledger.requeue("back", back.token, "engine_failed", delay_seconds=5)
    submit(ledger, *(edit_job(name, priority="high") for name in names("high", 3)))
    clock.advance(LEASE_SECONDS + 1)
    ledger.expire(max_attempts=3)
    ledger.promote()

    assert taken(ledger, 6) == ["lost", *names("high", 3), "back", "third"]


def test_a_handed_back_job_goes_first(ledger: Ledger) -> None:
    submit(ledger, *(edit_job(name) for name in names("row", 3)))
    claim = ledger.claim_best("w1", LEASE_SECONDS)
    assert isinstance(claim, Claim)
    taken(ledger, 1)
    ledger.requeue(claim.job_id, claim.token, "handed_back", spent="nothing")

    assert taken(ledger, 2) == ["row0", "row2"]


def test_a_claim_of_the_best_job_whose_answer_was_lost_gives_the_same_job_again(ledger: Ledger) -> None:
    submit(ledger, edit_job("a"), edit_job("b"))
    first = ledger.claim_best("w1", LEASE_SECONDS, token="t")

    again = ledger.claim_best("w1", LEASE_SECONDS, token="t")

    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert (again.job_id, again.attempt) == (first.job_id, first.attempt) == ("a", 1)
    assert taken(ledger, 2) == ["b"]


@pytest.mark.parametrize(("hint", "reason"), [("a", "running"), ("unheard-of", "unknown"), ("", "unknown")])
def test_when_nothing_waits_the_answer_is_the_state_of_the_job_in_the_message(
    ledger: Ledger, hint: str, reason: str
) -> None:
    submit(ledger, edit_job("a"))
    claimed(ledger, "a")

    assert ledger.claim_best("w1", LEASE_SECONDS, hint=hint) == Refusal(reason)


def test_a_tenant_is_bounded_by_itself(ledger: Ledger) -> None:
    jobs = [edit_job(name, tenant="lab") for name in names("row", 3)] + [edit_job("other", tenant="shop")]

    submissions = list(ledger.submit(jobs, OUTPUT_ROOT, max_queued_per_tenant=2))

    assert [submission.verdict for submission in submissions] == ["created", "created", "tenant_full", "created"]
    assert ledger.tenant_counts() == {"lab": {"queued": 2, "running": 0}, "shop": {"queued": 1, "running": 0}}


def test_only_the_job_that_was_worked_on_pays_for_a_lost_worker_and_is_a_suspect(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("poison"), edit_job("waited"))
    begun(ledger, "poison")
    claimed(ledger, "waited")
    clock.advance(LEASE_SECONDS + 1)
    ledger.expire(max_attempts=3)

    poison, waited = claimed(ledger, "poison"), claimed(ledger, "waited")

    assert (poison.attempt, poison.is_suspect) == (2, True)
    assert (waited.attempt, waited.is_suspect) == (1, False)
    assert [attempt.reason for attempt in ledger.get("waited").history] == ["worker_lost"]


def test_a_crowd_of_jobs_that_kill_workers_goes_first_once_and_then_holds_up_nobody(
    ledger: Ledger, clock: ManualClock
) -> None:
    def work_until_workers_die(count: int) -> list[str]:
        order = taken(ledger, count, is_begun=True)
        clock.advance(LEASE_SECONDS + 1)
        assert ledger.expire(max_attempts=3).again == order
        return order

    killers = names("killer", 3)
    submit(ledger, *(edit_job(name) for name in (*killers, "good0")))

    assert work_until_workers_die(3) == killers
    submit(ledger, edit_job("good1"))
    assert work_until_workers_die(3) == killers, "the first loss may have been the worker's own"

    assert taken(ledger) == ["good0", "good1", *killers]


def test_a_job_that_only_waited_in_lost_workers_goes_first_each_time(ledger: Ledger, clock: ManualClock) -> None:
    submit(ledger, edit_job("unlucky"), edit_job("other"))
    for _ in range(3):
        claimed(ledger, "unlucky")
        clock.advance(LEASE_SECONDS + 1)
        ledger.expire(max_attempts=3)

    assert taken(ledger, 2) == ["unlucky", "other"]


def test_a_job_that_was_lost_again_and_again_before_anybody_worked_on_it_fails(
    ledger: Ledger, clock: ManualClock
) -> None:
    submit(ledger, edit_job("a"))
    for _ in range(MOST_LOSSES):
        claimed(ledger, "a")
        clock.advance(LEASE_SECONDS + 1)
        assert ledger.expire(max_attempts=3) == (["a"], [], [])
    claimed(ledger, "a")
    clock.advance(LEASE_SECONDS + 1)

    assert ledger.expire(max_attempts=3) == ([], ["a"], [])

    record = ledger.get("a")
    assert record.state is JobState.FAILED
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.WORKER_LOST
    assert record.result.error.message == "11 workers died or went silent before any of them worked on it"


def test_jobs_of_a_producer_that_knows_no_lines_are_taken_too(ledger: Ledger) -> None:
    submit(ledger, edit_job("new"), edit_job("old"))
    ledger.redis.zrem("dg:line:normal:", "old")

    assert taken(ledger, 3) == ["new", "old"]


def test_a_job_that_a_worker_of_an_older_version_took_is_passed_over(ledger: Ledger) -> None:
    submit(ledger, edit_job("theirs"), edit_job("ours"))
    ledger.redis.zrem("dg:queued", "theirs")
    ledger.redis.hset("dg:job:theirs", "state", "running")

    assert taken(ledger, 3) == ["ours"]
