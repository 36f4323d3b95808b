"""What a worker says of itself, and what a probe makes of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.registry import WorkerState
from worker.health import Health, HealthFile, read_health

NOW = 1_800_000_000.0
WELL = Health("w1", os.getpid(), WorkerState.READY, written_at=NOW, redis_seen_at=NOW)


@pytest.mark.parametrize(
    ("health", "not_live", "not_ready"),
    [
        (WELL, None, None),
        (replace(WELL, state=WorkerState.BUSY), None, None),
        (replace(WELL, state=WorkerState.LOADING), None, "loading"),
        (replace(WELL, state=WorkerState.LOADING, detail="40 % read"), None, "loading: 40 % read"),
        (replace(WELL, state=WorkerState.DRAINING), None, "draining"),
        (replace(WELL, state=WorkerState.STUCK, detail="job a"), "stuck: job a", "stuck: job a"),
        (replace(WELL, state=WorkerState.BROKEN), "broken", "broken"),
        (replace(WELL, written_at=NOW - 60), "silent for 60 s", "silent for 60 s"),
        (replace(WELL, redis_seen_at=NOW - 60), None, "Redis has not answered for 60 s"),
    ],
)
def test_live_and_ready_tell_the_states_apart(health: Health, not_live: str | None, not_ready: str | None) -> None:
    assert health.why_not_live(NOW) == not_live
    assert health.why_not_ready(NOW) == not_ready


def test_the_files_of_several_workers_are_read_and_those_of_ended_processes_are_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    HealthFile(tmp_path, "w1").write(WELL)
    HealthFile(tmp_path, "host/w2").write(replace(WELL, name="host/w2"))
    HealthFile(tmp_path, "w3").write(replace(WELL, name="w3", pid=ended.pid))
    (tmp_path / "other.json").write_text("not ours")

    assert [health.name for health in read_health(tmp_path)] == ["host/w2", "w1"]

    HealthFile(tmp_path, "w1").remove()
    assert [health.name for health in read_health(tmp_path)] == ["host/w2"]
