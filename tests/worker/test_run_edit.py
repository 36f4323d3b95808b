"""One job in a whole worker of this process: what ends its run, and what does not."""

from __future__ import annotations

import io
import logging
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from jobs.errors import ErrorCode, StopWorker
from jobs.ledger import Ledger
from jobs.registry import WorkerState
from jobs.schema import EditJob, EditParams, JobState
from jobs.settings import load_settings
from kontext import ModelLost
from tests.servers.redis import RedisServer
from tests.waiting import eventually
from worker.edit_worker import EditWorker
from worker.event_log import EventLog
from worker.leases import Run
from worker.settings import Settings
from worker.standin import StandinEngine

TIMEOUT_SECONDS = 900.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which runs have their limits."""
    clock = Clock()
    monkeypatch.setattr("worker.run_edit.Run", partial(Run, clock=clock))
    return clock


@pytest.fixture
def worker(redis_server: RedisServer, tmp_path: Path, run_clock: Clock) -> Iterator[EditWorker]:
    settings = load_settings(
        Settings,
        broker_url=redis_server.url,
        flux_kontext_engine="standin",
        output_uri=(tmp_path / "out").as_uri(),
        runtime_dir=tmp_path / "runtime",
        job_timeout_seconds=TIMEOUT_SECONDS,
    )
    worker = EditWorker(settings, (EventLog().hear,))
    worker.pool.load()
    yield worker
    worker.stop()


@pytest.fixture
def ledger(worker: EditWorker) -> Iterator[Ledger]:
    ledger = Ledger.from_settings(worker.settings)
    yield ledger
    ledger.redis.close()


def submit(ledger: Ledger, worker: EditWorker, prompt: str) -> None:
    """Put job `a` into the ledger."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), "orange").save(buffer, "PNG")
    uri = f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}"
    job = EditJob(id="a", image=(uri,), prompt=prompt, params=EditParams(num_inference_steps=2))
    list(ledger.submit([job], worker.settings.output_uri))


def begin(worker: EditWorker, ledger: Ledger) -> threading.Thread:
    """Run job `a` in a thread, as Celery's pool does."""
    submit(ledger, worker, "make it snow")
    thread = threading.Thread(target=worker.runner.run_message, args=("a", "task"), daemon=True)
    thread.start()
    return thread


def is_in(worker: EditWorker, stage: str) -> bool:
    return [run.progress.stage for run in worker.leases.runs] == [stage]


def test_a_neighbours_turn_costs_a_job_none_of_its_time(worker: EditWorker, ledger: Ledger, run_clock: Clock) -> None:
    with worker.pool.turn(lambda: None):  # a neighbour has the GPU
        thread = begin(worker, ledger)
        eventually(lambda: is_in(worker, "waiting"))
        run_clock.now += 10 * TIMEOUT_SECONDS
        [run] = worker.leases.runs
        run.check()
    thread.join()

    assert ledger.get("a").state is JobState.SUCCEEDED


def test_the_log_tells_how_many_steps_a_step_cache_computed(
    worker: EditWorker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = StandinEngine.run
    monkeypatch.setattr(StandinEngine, "run", lambda *arguments: replace(run(*arguments), steps_computed=1))

    with caplog.at_level(logging.INFO):
        begin(worker, ledger).join()

    assert "steps_skipped job=a computed=1 steps=2" in caplog.messages


def test_the_log_says_nothing_of_steps_where_there_is_no_step_cache(
    worker: EditWorker, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        begin(worker, ledger).join()

    assert not [line for line in caplog.messages if line.startswith("steps_skipped")]


@pytest.mark.parametrize(("fails_before", "state"), [(False, JobState.SUCCEEDED), (True, JobState.QUEUED)])
def test_an_engine_that_is_lost_after_an_edit_with_spare_memory_gets_no_other_job(
    worker: EditWorker,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fails_before: bool,
    state: JobState,
) -> None:
    @contextmanager
    def spare_memory(engine: StandinEngine) -> Iterator[None]:
        engine.is_spared = not fails_before
        try:
            yield
        finally:
            raise ModelLost("another program took the memory")

    monkeypatch.setattr(StandinEngine, "spare_memory", spare_memory)
    submit(ledger, worker, "need much memory")

    with pytest.raises(StopWorker, match="another program took the memory"):
        worker.runner.run_message("a", "task")

    assert worker.state is WorkerState.BROKEN
    assert ledger.get("a").state is state
    assert any(path.is_file() for path in tmp_path.glob("out/**/*")) is (state is JobState.SUCCEEDED)


def cancel(worker: EditWorker, ledger: Ledger, clock: Clock) -> None:
    ledger.cancel("a")
    worker.leases.renew_all()


def pass_the_deadline(worker: EditWorker, ledger: Ledger, clock: Clock) -> None:
    clock.now += 2 * TIMEOUT_SECONDS


def lose_patience(worker: EditWorker, ledger: Ledger, clock: Clock) -> None:
    worker.leases.drain(include_sampling=True)


@pytest.mark.parametrize(
    ("end", "state", "code"),
    [
        (cancel, JobState.CANCELLED, ErrorCode.CANCELLED),
        (pass_the_deadline, JobState.FAILED, ErrorCode.DEADLINE_EXCEEDED),
        (lose_patience, JobState.QUEUED, None),
    ],
)
def test_a_store_that_takes_no_image_holds_up_no_end(
    end: Callable[[EditWorker, Ledger, Clock], None],
    state: JobState,
    code: ErrorCode | None,
    worker: EditWorker,
    ledger: Ledger,
    run_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, answers = threading.Event(), threading.Event()

    def fsync(_: int) -> None:  # a file server that is away
        begun.set()
        answers.wait()

    monkeypatch.setattr(os, "fsync", fsync)
    thread = begin(worker, ledger)
    eventually(begun.is_set)
    assert is_in(worker, "uploading")

    end(worker, ledger, run_clock)

    eventually(lambda: not thread.is_alive())
    record = ledger.get("a")
    assert record.state is state
    assert (record.result.error.code if record.result.error else None) is code
    answers.set()
    eventually(lambda: "transfer" not in [thread.name for thread in threading.enumerate()])
    assert not list((Path(worker.settings.output_uri.removeprefix("file://"))).iterdir())
