"""Runs and their leases: how a run learns that it should end, and when."""

from __future__ import annotations

import pytest

from jobs.errors import AbortJob, Cancelled, ErrorCode, HandBack, LeaseLost, RejectJob
from jobs.ledger import Claim, Ledger, Progress
from jobs.schema import EditJob
from tests.clock import ManualClock
from worker.leases import LeaseKeeper, Run

LEASE_SECONDS = 30.0


@pytest.fixture
def run(ledger: Ledger) -> Run:
    list(ledger.submit([EditJob(id="a", image=("s3://in/cat.png",), prompt="make it snow")], "s3://out"))
    claim = ledger.claim("a", "w1", LEASE_SECONDS)
    assert isinstance(claim, Claim)
    return Run(claim, timeout_seconds=900)


@pytest.fixture
def stalled() -> list[Run]:
    return []


@pytest.fixture
def keeper(ledger: Ledger, stalled: list[Run]) -> LeaseKeeper:
    return LeaseKeeper(ledger, LEASE_SECONDS, stall_seconds=300, on_stall=stalled.append)


def test_renewing_writes_the_progress_and_keeps_the_lease(
    ledger: Ledger, keeper: LeaseKeeper, run: Run, clock: ManualClock
) -> None:
    with keeper.keep(run):
        run.on_step(3, 30)
        clock.advance(20)
        keeper.renew_all()
        clock.advance(20)

        assert ledger.expire(max_attempts=3) == ([], [], [])
        assert ledger.get("a").progress == Progress("sampling", 3, 30)
        run.check()


def test_a_cancel_ends_the_run_at_its_next_step(ledger: Ledger, keeper: LeaseKeeper, run: Run) -> None:
    with keeper.keep(run):
        ledger.cancel("a")
        keeper.renew_all()

        with pytest.raises(Cancelled):
            run.on_step(4, 30)


def test_a_lost_lease_ends_the_run(ledger: Ledger, keeper: LeaseKeeper, run: Run, clock: ManualClock) -> None:
    with keeper.keep(run):
        clock.advance(LEASE_SECONDS + 1)
        ledger.expire(max_attempts=3)
        keeper.renew_all()

        with pytest.raises(LeaseLost):
            run.check()


@pytest.mark.parametrize(("stage", "is_handed_back"), [("fetching", True), ("waiting", True), ("uploading", False)])
def test_a_drain_first_hands_back_what_has_not_reached_the_gpu(
    keeper: LeaseKeeper, run: Run, stage: str, is_handed_back: bool
) -> None:
    with keeper.keep(run), run.stage(stage):
        keeper.drain(include_sampling=False)

        if is_handed_back:
            with pytest.raises(HandBack):
                run.check()
        else:
            run.check()


def test_a_drain_out_of_patience_hands_back_the_sampling_job_too(keeper: LeaseKeeper, run: Run) -> None:
    with keeper.keep(run):
        run.on_step(1, 30)
        keeper.drain(include_sampling=False)
        run.on_step(2, 30)
        keeper.drain(include_sampling=True)

        with pytest.raises(HandBack):
            run.on_step(3, 30)


def test_a_run_that_begins_during_a_drain_is_handed_back(keeper: LeaseKeeper, run: Run) -> None:
    keeper.drain(include_sampling=False)

    with keeper.keep(run), pytest.raises(HandBack):
        run.check()


def test_the_first_reason_to_end_stays(run: Run) -> None:
    run.abort(Cancelled())
    run.abort(HandBack())

    with pytest.raises(AbortJob) as reason:
        run.check()
    assert reason.value.code is ErrorCode.CANCELLED


def test_a_run_past_its_deadline_fails_for_good(run: Run) -> None:
    run.limit(1e-9)

    with pytest.raises(RejectJob, match="ran longer than its 1e-09 s") as reason:
        run.check()
    assert reason.value.code is ErrorCode.DEADLINE_EXCEEDED


def test_a_job_can_only_shorten_the_workers_deadline(run: Run) -> None:
    run.limit(1e9)
    run.limit(None)
    run.check()


def test_a_sampling_step_that_never_ends_is_a_stall_and_is_not_renewed(
    ledger: Ledger, run: Run, stalled: list[Run], clock: ManualClock
) -> None:
    keeper = LeaseKeeper(ledger, LEASE_SECONDS, stall_seconds=0, on_stall=stalled.append)
    with keeper.keep(run):
        run.on_step(1, 30)
        clock.advance(LEASE_SECONDS + 1)
        keeper.renew_all()

    assert stalled == [run]
    assert ledger.expire(max_attempts=3) == (["a"], [], [])
