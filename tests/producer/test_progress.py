"""Following a batch: what is counted and how it is told."""

from __future__ import annotations

import json

import pytest

from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import JobState
from producer import Client
from producer import progress as progress_module
from producer.progress import JsonLines, Lines, Snapshot, follow, open_display, watch
from tests.producer.conftest import finish, make_job


class Clock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def snapshot(queued: int = 0, succeeded: int = 0, failed: int = 0, **fields: object) -> Snapshot:
    counts = dict.fromkeys(JobState, 0) | {
        JobState.QUEUED: queued,
        JobState.SUCCEEDED: succeeded,
        JobState.FAILED: failed,
    }
    values = {"workers": (), "rate": 0.0, "elapsed_seconds": 0.0, **fields}
    return Snapshot(counts, **values)  # type: ignore[arg-type]


def test_a_batch_is_followed_to_its_end_and_its_rate_is_measured(client: Client) -> None:
    list(client.submit_many(make_job(f"job-{number}", batch="some") for number in range(4)))
    clock, looks = Clock(), []

    for look in follow(client, "some", clock, lambda seconds: clock.sleep(0.5)):
        looks.append(look)
        finish(client, f"job-{len(looks) - 1}") if len(looks) <= 4 else None

    assert [look.ended for look in looks] == [0, 1, 2, 3, 4]
    assert looks[2].rate == 2.0, "2 jobs in 1 s"
    assert looks[2].seconds_left == 1.0, "2 jobs are left"


def test_a_snapshot_says_all_that_people_ask() -> None:
    words = str(snapshot(queued=7200, succeeded=10, failed=2, rate=2.0))

    assert words == "7,200 queued, 0 running, 10 done, 2 failed, 2 jobs/s, 1 h 0 min left"


def test_lines_come_when_something_changed_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()

    lines.show(snapshot(queued=2), is_last=False)
    lines.show(snapshot(queued=1, succeeded=1, elapsed_seconds=1), is_last=False)  # too soon
    lines.show(snapshot(queued=2, elapsed_seconds=9), is_last=False)  # nothing new
    lines.show(snapshot(queued=1, succeeded=1, elapsed_seconds=10), is_last=False)
    lines.show(snapshot(succeeded=2, elapsed_seconds=11), is_last=True)

    said = capsys.readouterr()
    assert [line.partition("]")[0] for line in said.err.splitlines()] == ["[0 s", "[10 s", "[11 s"]
    assert said.out == ""


def test_json_lines_go_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    JsonLines().show(snapshot(queued=3, succeeded=1, rate=1.5), is_last=False)

    line = json.loads(capsys.readouterr().out)
    assert line["queued"] == 3
    assert (line["jobs_per_second"], line["seconds_left"], line["workers"]) == (1.5, 2, 0)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any file for a terminal
    monkeypatch.setenv("COLUMNS", "120")

    with open_display(as_json=False) as display:
        display.show(snapshot(queued=1, succeeded=3), is_last=False)

    assert "75%" in capsys.readouterr().err


def test_a_missing_worker_is_told_once(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = [snapshot(queued=1, elapsed_seconds=second) for second in range(20)]
    monkeypatch.setattr(progress_module, "follow", lambda client, batch: iter([*looks, snapshot(succeeded=1)]))

    watch(client, "some", as_json=False)

    assert capsys.readouterr().err.count("no worker is running; start one with: worker run") == 1


def test_a_loading_worker_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    loading = WorkerInfo("gpu-1", WorkerState.LOADING)

    Lines().show(snapshot(queued=1, workers=(loading,)), is_last=True)
    Lines().show(snapshot(queued=1, workers=(loading,), has_begun=True), is_last=True)

    loads, begun = capsys.readouterr().err.splitlines()
    assert loads.endswith("; loading the model")
    assert "loading" not in begun, "the registry lags behind the first job by a second"
