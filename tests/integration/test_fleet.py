"""`worker run --gpus` with real workers: one dies, the others go on, and SIGTERM drains all."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from jobs.schema import JobState
from tests.integration.conftest import Service, is_sampling
from tests.servers.worker import running_worker
from tests.waiting import eventually

GPUS = ("0", "1")
COMMAND = ("-m", "worker", "run", "--gpus", ",".join(GPUS))


def pid_of(gpu: str, runtime: Path) -> int:
    """The process that works on a GPU, by its health file; 0 while there is none."""
    try:
        return int(json.loads((runtime / f"host-gpu{gpu}.json").read_text())["pid"])
    except (OSError, ValueError):
        return 0


@pytest.mark.slow
def test_a_worker_of_a_fleet_is_killed_and_started_again_and_at_sigterm_all_drain(service: Service) -> None:
    runtime = service.folder / "runtime"
    environment = {**service.environment, "DG_LOG_FORMAT": "json"}
    with running_worker("host", service.folder, environment, command=COMMAND) as fleet:
        eventually(lambda: fleet.log.count("worker_takes_jobs") == len(GPUS), what="both workers")
        killed = pid_of("0", runtime)
        jobs = [service.submit(f"j{number}", params={"num_inference_steps": 10}) for number in range(8)]
        eventually(lambda: any(is_sampling(service, job) and _worker(service, job) == "host-gpu0" for job in jobs))
        os.kill(killed, signal.SIGKILL)
        for job in jobs:
            assert service.ended(job).state is JobState.SUCCEEDED
        eventually(lambda: pid_of("0", runtime) not in (0, killed), what="another worker on GPU 0")
        fleet.wait_until_logged("worker ended with code -9; another starts in 1 s")
        eventually(lambda: fleet.log.count("worker_takes_jobs") == len(GPUS) + 1, what="the new worker")

        last = service.submit("last", params={"num_inference_steps": 10})
        eventually(lambda: is_sampling(service, last))
        fleet.signal(signal.SIGTERM)
        assert fleet.exit_code() == 0

    assert service.ledger.get(last).state is JobState.SUCCEEDED, "a drain finishes the job at hand"
    ends = [line for line in map(json.loads, fleet.log.splitlines()) if line.get("event") == "worker_stopped"]
    assert sorted(line["worker"] for line in ends) == ["host-gpu0", "host-gpu1"]


def _worker(service: Service, job_id: str) -> str | None:
    return service.ledger.get(job_id).worker
