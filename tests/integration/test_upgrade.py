"""Two versions on one Redis: workers are replaced one by one, forth and back, while jobs run.

The older version is that of the latest tag, otherwise that of the commit before; `UPGRADE_FROM=<commit>` names another.
"""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker
from tests.requirements import require
from tests.servers.http import Answer, HttpServer
from tests.servers.worker import ROOT, WorkerProcess
from tests.waiting import eventually

JOBS = 25
"""Submitted by each of the two versions."""

PACKAGES = ("jobs", "kontext", "producer", "storage", "worker", "models/tiny")


def git(*arguments: str) -> bytes | None:
    """What a git command of this checkout prints; None when it fails, or there is no git."""
    try:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the packages of the older version."""
    named = os.environ.get("UPGRADE_FROM") or (git("describe", "--tags", "--abbrev=0") or b"HEAD~1").decode().strip()
    archive = git("archive", named, *PACKAGES)
    require(archive, f"the history of this checkout lacks {named}: fetch it whole")
    folder = tmp_path_factory.mktemp("older")
    with tarfile.open(fileobj=io.BytesIO(archive or b"")) as files:
        files.extractall(folder, filter="data")
    return folder


def submit(batch: str, tree: Path, service: Service, hook: str) -> None:
    """Submit a table by the command of the version in `tree`."""
    table = service.folder / f"{batch}.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "image", "prompt"])
        rows.writerows([f"{batch}-{number}", service.picture(), "make it snow"] for number in range(JOBS))
    command = ["submit", str(table), "--batch", batch, "--callback-url", hook, "--num-inference-steps", "4"]
    subprocess.run([sys.executable, "-m", "producer", *command], env=environment(tree, service), check=True)


def environment(tree: Path, service: Service) -> Mapping[str, str]:
    return {**os.environ, **service.environment, "PYTHONPATH": str(tree)}


def replace(worker: WorkerProcess, by: str, tree: Path, start_worker: StartWorker) -> WorkerProcess:
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    return start_worker(by, PYTHONPATH=str(tree))


@pytest.mark.slow
def test_workers_are_upgraded_and_set_back_one_by_one_and_no_job_is_lost_or_done_twice(
    service: Service, start_worker: StartWorker, http_server: HttpServer, older: Path
) -> None:
    hook = http_server.answer("/hook", Answer(204))
    workers = [start_worker(f"old{number}", PYTHONPATH=str(older)) for number in range(2)]
    submit("early", older, service, hook)

    workers = [replace(worker, f"new{number}", ROOT, start_worker) for number, worker in enumerate(workers)]
    submit("late", ROOT, service, hook)
    replace(workers[0], "back", older, start_worker)

    for batch in ("early", "late"):
        eventually(lambda name=batch: service.client.status(name)[JobState.SUCCEEDED] == JOBS, what=batch)
    names = [f"{batch}-{number}" for batch in ("early", "late") for number in range(JOBS)]
    assert {service.ledger.get(name).attempts for name in names} == {1}
    assert len({service.ledger.get(name).result.output for name in names}) == len(service.outputs()) == len(names)
    eventually(lambda: {service.ledger.get(name).callback for name in names} == {"delivered"}, what="callbacks")
    assert len({request.headers["webhook-id"] for request in http_server.requests("/hook")}) == len(names)
    took_part = {service.ledger.get(name).worker for name in names}
    assert {"old0", "old1"} & took_part
    assert {"new0", "new1"} & took_part
