"""Promise 4: a job that takes all memory there is fails alone; the limits are real, and so is what meets them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobs.errors import ErrorCode
from tests.chaos.bench import MAX_ATTEMPTS, Bench
from tests.chaos.expected import Expected
from tests.chaos.invariants import broken_promises, submit
from tests.chaos.narrow import killed_by_the_kernel, little_memory
from tests.chaos.poison import FAILED, assert_poison_ends
from tests.waiting import eventually

ROOM_BYTES = 300 * 2**20
LIMITED = {"CHAOS_MEMORY_BYTES": str(ROOM_BYTES)}

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets limits as Linux knows them")


def test_jobs_for_which_there_is_no_memory_fail_after_their_attempts_and_their_neighbours_finish(bench: Bench) -> None:
    bench.start_worker("w1", **LIMITED)
    jobs = submit(bench, "before")
    for job_id in ("greedy", "another"):
        submit(bench, job_id, prompt="take memory")
        jobs[job_id] = Expected(7, FAILED)
    jobs |= submit(bench, "after", seed=9)

    eventually(partial(_settled_with_a_worker, bench))

    for job_id in ("greedy", "another"):
        record = bench.ledger.get(job_id)
        assert record.result.error is not None
        assert record.result.error.code is ErrorCode.OUT_OF_MEMORY
        assert [attempt.reason for attempt in record.history] == ["out_of_memory"] * MAX_ATTEMPTS
    assert broken_promises(bench, jobs) == []


def test_a_job_whose_library_runs_out_of_memory_and_crashes_fails_after_its_attempts(bench: Bench) -> None:
    assert_poison_ends(bench, "take memory blindly", -signal.SIGSEGV, LIMITED)


def test_a_job_for_which_the_kernel_kills_its_workers_fails_after_its_attempts(cgroup: Path, bench: Bench) -> None:
    assert_poison_ends(bench, "take memory", -signal.SIGKILL, {"CHAOS_CGROUP": str(cgroup)})

    assert killed_by_the_kernel(cgroup) == 3


def _settled_with_a_worker(bench: Bench) -> bool:
    """Whether nothing is open; a worker that ended, as when it cannot start a thread, is started again."""
    if bench.workers["w1"].process.poll() is not None:
        bench.start_worker("w1", **LIMITED)
    return not any(bench.ledger.queue_counts().values())


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A control group with `ROOM_BYTES`; whether one can be made is the machine's matter, so this skips in CI too."""
    with little_memory(ROOM_BYTES) as group:
        if group is None:
            pytest.skip("no control group with a limit of memory can be made here: needs root and /sys/fs/cgroup")
        yield group
