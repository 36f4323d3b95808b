"""Promise 1: a store that fails, hangs up or is full costs time and no attempt, and leaves no half pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.chaos.bench import Bench
from tests.chaos.expected import Expected
from tests.chaos.faults import Fault, store_cut_off, store_failing, store_hanging_up, store_slow
from tests.chaos.invariants import broken_promises, submit, wait_until_settled
from tests.chaos.narrow import small_disk
from tests.waiting import eventually, passing

DISK_BYTES = 256 * 1024


@pytest.mark.parametrize(
    "fault", [store_failing, store_slow, store_hanging_up, store_cut_off], ids=lambda f: f.__name__
)
def test_a_job_outlives_a_store_that_misbehaves_for_a_while(bench: Bench, fault: Fault) -> None:
    bench.start_worker("w1")

    with fault(bench):
        jobs = submit(bench, "a", output=bench.bucket_uri("a.png"))
        passing(1)
    wait_until_settled(bench)

    assert bench.ledger.get("a").attempts == 1
    assert broken_promises(bench, jobs) == []


def test_a_store_away_for_longer_than_a_few_attempts_last_costs_none_of_them(bench: Bench) -> None:
    bench.start_worker("w1")

    with store_failing(bench):
        jobs = submit(bench, "a", output=bench.bucket_uri("a.png"))
        eventually(lambda: len(bench.ledger.get("a").history) == 3)
    wait_until_settled(bench)

    record = bench.ledger.get("a")
    assert [attempt.reason for attempt in record.history] == ["output_unavailable"] * 3 + ["succeeded"]
    assert record.attempts == 1
    assert broken_promises(bench, jobs) == []


def test_an_upload_reset_in_the_middle_of_its_body_is_made_again(bench: Bench) -> None:
    bench.start_worker("w1")
    bench.store_line.cut_after(1_000_000)
    size = {"width": 1024, "height": 1024}
    jobs = submit(bench, "a", prompt="noise", output=bench.bucket_uri("a.png"), params=size)

    wait_until_settled(bench)

    assert not bench.store_line.will_cut
    assert broken_promises(bench, jobs) == []


def test_a_forbidden_bucket_fails_the_job_at_once_and_costs_no_gpu_time(bench: Bench) -> None:
    bench.start_worker("w1")
    bench.store.status = 403

    submit(bench, "a", output=bench.bucket_uri("a.png"))

    record = bench.ended("a")
    assert record.state is JobState.FAILED
    assert record.attempts == 1
    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.OUTPUT_FORBIDDEN
    assert record.result.timings.sample is None


def test_a_store_that_stays_away_fails_the_job_with_its_reason_and_its_callback(bench: Bench) -> None:
    bench.start_worker("w1", DG_OUTAGE_SECONDS="5")  # the pauses are 2 s, then 4 s: no longer
    bench.store.status = 503
    submit(bench, "a", output=bench.bucket_uri("a.png"))

    record = bench.ended("a")
    bench.store.status = None
    wait_until_settled(bench)

    assert record.attempts == 1
    assert [attempt.reason for attempt in record.history] == ["output_unavailable"] * 2
    assert broken_promises(bench, {"a": Expected(7, frozenset({JobState.FAILED}))}) == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "out", DISK_BYTES) as folder:
        yield folder


def test_a_full_disk_is_waited_for_and_keeps_no_half_picture(disk: Path, bench: Bench) -> None:
    filler = disk / "a"
    filler.write_bytes(bytes(DISK_BYTES - 4096))
    bench.start_worker("w1")
    jobs = submit(bench, "a", prompt="noise", params={"width": 160, "height": 160})

    eventually(lambda: bench.ledger.get("a").history)
    assert bench.outputs() == ["a"]
    filler.unlink()
    wait_until_settled(bench)

    assert bench.ledger.get("a").history[0].reason == "output_unavailable"
    assert broken_promises(bench, jobs) == []
