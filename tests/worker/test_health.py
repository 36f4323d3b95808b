"""What a worker says of itself, and what a probe makes of it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.errors import SettingsError
from jobs.registry import WorkerState
from jobs.settings import load_settings
from tests.chaos.narrow import small_disk
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


def test_a_full_disk_does_not_make_a_working_worker_look_dead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 64 * 1024) as folder:
        file = HealthFile(folder / "run", "w1")
        file.write(replace(WELL, state=WorkerState.LOADING))
        with pytest.raises(OSError, match="No space"):
            (folder / "filler").write_bytes(bytes(2**20))
        file.write(replace(WELL, state=WorkerState.BUSY, written_at=time.time(), detail="é" * 10_000))

        assert answer_probe(folder / "run", live=True) == 0
        assert '"state": "busy"' in capsys.readouterr().out
        assert not caplog.records

        late = HealthFile(folder / "run", "w2")  # no space from the first moment on
        for _ in range(3):
            late.write(replace(WELL, name="w2"))
        assert [record.message.split()[0] for record in caplog.records] == ["health_not_written"]
        assert answer_probe(folder / "run", live=True, name="w2") == 0
        assert answer_probe(folder / "run", ready=True, name="w2") == 1
        assert "no room for its health file" in capsys.readouterr().out
        long_ago = time.time() - 60
        os.utime(folder / "run" / "w2.json", (long_ago, long_ago))
        assert answer_probe(folder / "run", live=True, name="w2") == 1, "silent all the same"


def test_a_write_that_fails_still_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = HealthFile(tmp_path, "w1")
    file.write(replace(WELL, written_at=NOW - 1000))
    os.utime(tmp_path / "w1.json", (NOW - 1000, NOW - 1000))
    assert read_health(tmp_path)[0].why_not_live(NOW) == "silent for 1000 s"

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "pwrite", full)
    file.write(replace(WELL, written_at=time.time()))

    assert read_health(tmp_path)[0].why_not_live(time.time()) is None


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    for mode in (0o777, 0o770, 0o1777):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run").chmod(mode)
        with pytest.raises(SettingsError, match=f"others may write to {tmp_path / 'run'} .mode {mode:o}.: remove it"):
            HealthFile(tmp_path / "run", "w1")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"DG_RUNTIME_DIR=.*: Not a directory; name another folder"):
        HealthFile(tmp_path / "file" / "run", "w1")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
def test_a_folder_or_link_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 1234, 1234)
    (tmp_path / "ours").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "ours")
    os.chown(tmp_path / "link", 1234, 1234, follow_symlinks=False)

    for folder in ("theirs", "link"):
        with pytest.raises(SettingsError, match="belongs to user 1234, not to 0"):
            HealthFile(tmp_path / folder, "w1")


def test_links_and_pipes_are_neither_written_through_nor_read(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "w1.json").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe.json")

    HealthFile(tmp_path, "w1").write(WELL)

    assert (tmp_path / "precious").read_text() == "kept"
    assert read_health(tmp_path) == []


def test_a_file_that_somebody_removed_comes_back(tmp_path: Path) -> None:
    file = HealthFile(tmp_path, "w1")
    file.write(WELL)
    (tmp_path / "w1.json").unlink()
    file.write(WELL)

    assert [health.name for health in read_health(tmp_path)] == ["w1"]
