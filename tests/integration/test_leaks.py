"""A worker that has run for long is as small as it was after its first jobs; `LEAK_JOBS=20000` runs for longer."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.schema import EditJob, JobState
from tests.integration.conftest import Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.waiting import eventually
from worker.callbacks import PARALLEL

log = logging.getLogger(__name__)

WARM_UP_JOBS = 200
JOBS = int(os.environ.get("LEAK_JOBS", "2000"))
MOST_GROWTH_BYTES = 20_000_000
JOB_SECONDS = 0.2
"""What one job may take on a busy machine; with an engine that takes no time it is 5 ms on two idle cores."""

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@dataclass(frozen=True)
class Footprint:
    """What a process holds."""

    resident_bytes: int
    descriptors: int
    threads: int


def footprint(pid: int) -> Footprint:
    process = Path(f"/proc/{pid}")
    resident_pages = int((process / "statm").read_text().split()[1])
    return Footprint(
        resident_pages * os.sysconf("SC_PAGE_SIZE"),
        len(list((process / "fd").iterdir())),
        len(list((process / "task").iterdir())),
    )


def run_jobs(service: Service, batch: str, count: int, picture: str, hook: str) -> None:
    """Run jobs with pictures from a folder and from the web, every tenth with a callback."""
    sources = (service.picture(), picture)
    jobs = [
        EditJob.model_validate(
            {
                "image": sources[number % 2],
                "prompt": "make it snow",
                "batch": batch,
                "params": {"num_inference_steps": 2},
                "callback": {"url": hook} if number % 10 == 0 else None,
            }
        )
        for number in range(count)
    ]
    assert sum(submission.verdict == "created" for submission in service.client.submit_many(jobs)) == count
    seconds = count * JOB_SECONDS
    eventually(lambda: service.client.status(batch)[JobState.SUCCEEDED] == count, seconds, what=f"{count} pictures")
    eventually(lambda: service.ledger.queue_counts()["callbacks"] == 0, seconds, what="all callbacks")


def test_a_worker_holds_no_more_after_thousands_of_jobs_than_after_hundreds(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    picture = http_server.serve_file("/cat.png", (Path(service.picture().removeprefix("file://"))).read_bytes())
    slow = Answer(204, delay_seconds=0.5)  # so that all threads for callbacks are at work once before we count them
    hook = http_server.answer("/hook", *[slow] * PARALLEL, Answer(204))
    worker = start_worker(DG_FLUX_KONTEXT_ENGINE="tests.worker.engines:timed", STANDIN_STEP_SECONDS="0")
    run_jobs(service, "warm-up", WARM_UP_JOBS, picture, hook)
    before = footprint(worker.process.pid)

    run_jobs(service, "many", JOBS - WARM_UP_JOBS, picture, hook)

    after = footprint(worker.process.pid)
    log.info("after %d jobs: %s; after %d: %s", WARM_UP_JOBS, before, JOBS, after)
    assert after.resident_bytes - before.resident_bytes < MOST_GROWTH_BYTES
    assert after.threads <= before.threads
    # Each thread opens a connection to Redis when it first finds all others in use, and that may come late.
    assert after.descriptors <= before.descriptors + after.threads
