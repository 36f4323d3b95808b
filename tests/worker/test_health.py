"""What a worker says of itself, and what a probe makes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.registry import WorkerState
from jobs.settings import load_settings
from worker.health import Health, HealthFile, answer_probe, find_runtime_dir, read_health
from worker.settings import Settings

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


PROBE = """
import sys
from worker.cli import main
sys.argv = ["worker", "health", "--ready"]
try:
    main()
finally:
    print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""
HEAVY = {"celery", "kombu", "redis", "kontext", "PIL", "numpy", "torch", "pydantic", "typer", "rich", "asyncio"}


def test_a_probe_loads_no_library(tmp_path: Path) -> None:
    HealthFile(tmp_path, "w1").write(replace(WELL, written_at=time.time(), redis_seen_at=time.time()))

    probe = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**os.environ, "DG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert probe.returncode == 0
    assert json.loads(probe.stdout) == {"name": "w1", "pid": os.getpid(), "state": "ready", "reason": None}
    assert HEAVY.isdisjoint(probe.stderr.split())


def test_the_answer_is_a_line_for_each_worker_and_1_if_one_is_not_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    HealthFile(tmp_path, "w1").write(replace(WELL, written_at=now, redis_seen_at=now))
    HealthFile(tmp_path, "w2").write(replace(WELL, name="w2", state=WorkerState.DRAINING, written_at=now))

    assert answer_probe(tmp_path, live=True) == 0
    assert answer_probe(tmp_path, ready=True) == 1
    assert answer_probe(tmp_path, ready=True, name="w1") == 0
    reasons = [json.loads(line)["reason"] for line in capsys.readouterr().out.splitlines()]
    assert reasons == [None, None, None, "draining", None]


def test_without_a_worker_the_answer_names_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer_probe(tmp_path / "none", live=True) == 1
    assert capsys.readouterr().err == f"no worker is running (no health file in {tmp_path / 'none'})\n"


@pytest.mark.parametrize(
    ("environment", "dotenv"),
    [({}, ""), ({"DG_RUNTIME_DIR": "/run/a"}, "DG_RUNTIME_DIR=/run/b"), ({}, "DG_RUNTIME_DIR=/run/b\nOTHER"),
     ({"DG_RUNTIME_DIR": ""}, "DG_RUNTIME_DIR=/run/b"), ({"dg_runtime_dir": "/run/a"}, ""), ({}, "DG_RUNTIME_DIR=")],
)  # fmt: skip
def test_probes_look_where_the_worker_writes(
    environment: dict[str, str], dotenv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(dotenv)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert find_runtime_dir(environment) == load_settings(Settings).runtime_dir
