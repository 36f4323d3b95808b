"""Promise 4: a job that kills its workers stops after `DG_MAX_ATTEMPTS`, with its reason, and takes nobody along."""

from __future__ import annotations

import signal

import pytest

from tests.chaos.bench import Bench
from tests.chaos.poison import assert_poison_ends


@pytest.mark.parametrize(
    ("prompt", "exit_code"), [("leave", 1), ("crash", -signal.SIGSEGV), ("die late", -signal.SIGKILL)]
)
def test_a_job_that_ends_its_workers_fails_with_its_history_and_its_neighbours_finish(
    bench: Bench, prompt: str, exit_code: int
) -> None:
    assert_poison_ends(bench, prompt, exit_code, {})
