"""What a worker tells of a model that is still loading."""

from __future__ import annotations

import logging

import pytest

from jobs.registry import WorkerState
from jobs.settings import load_settings
from worker.edit_worker import EditWorker
from worker.event_log import EventLog
from worker.events import Events
from worker.health import read_health
from worker.loading import LoadProgress
from worker.settings import Settings

TOTAL = 33_700_000_000


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_line_comes_with_every_ten_percent(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = LoadProgress(Events(EventLog().hear), clock)

    with caplog.at_level(logging.INFO):
        for percent in range(101):
            progress.report(TOTAL * percent // 100, TOTAL)
            clock.now += 0.0625

    lines = caplog.messages
    assert [line.split()[1] for line in lines] == [f"percent={percent}" for percent in range(10, 101, 10)]
    assert lines[3] == "model_loading percent=40 read=13.48GB total=33.70GB seconds=2.5"


def test_a_slow_disk_is_heard_of_every_two_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    progress = LoadProgress(Events(EventLog().hear), clock)

    with caplog.at_level(logging.INFO):
        for _ in range(21):
            clock.now += 0.25
            progress.report(TOTAL // 50, TOTAL)

    assert [line.rpartition("=")[2] for line in caplog.messages] == ["2.0", "4.0"]


def test_a_small_model_takes_one_line(caplog: pytest.LogCaptureFixture) -> None:
    progress = LoadProgress(Events(EventLog().hear), Clock())

    with caplog.at_level(logging.INFO):
        for done in range(0, 101, 5):
            progress.report(done, 100)

    assert caplog.messages == ["model_loading percent=100 read=0.00GB total=0.00GB seconds=0.0"]


def test_words_are_those_of_the_last_report() -> None:
    progress = LoadProgress(Events())
    assert str(progress) == ""

    progress.report(TOTAL // 2, TOTAL)
    assert str(progress) == "50 % of 33.7 GB read"

    progress.report(TOTAL, TOTAL)
    assert str(progress) == "weights read, warming up"


def test_the_health_file_of_a_loading_worker_tells_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("DG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("DG_FLUX_KONTEXT_DEVICE", "cpu")
    worker = EditWorker(load_settings(Settings), ())
    worker.loading.report(TOTAL // 4, TOTAL)

    worker.write_health()

    (health,) = read_health(worker.settings.runtime_dir)
    assert (health.state, health.why_not_ready(health.written_at)) == (
        WorkerState.LOADING,
        "loading: 25 % of 33.7 GB read",
    )

    worker.pool.load()
    worker.write_health()

    (health,) = read_health(worker.settings.runtime_dir)
    assert (health.state, health.detail) == (WorkerState.READY, "")
    assert str(worker.loading) == "weights read, warming up"
