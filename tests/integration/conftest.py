"""A service to test from outside: Redis, folders, a client, and workers with a stand-in engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.connection import connect
from jobs.ledger import JobRecord, Ledger
from jobs.schema import EditJob
from jobs.settings import load_settings
from producer import Client
from tests.servers.redis import RedisServer
from tests.servers.worker import WorkerProcess, running_worker
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.settings import Settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LEASE_SECONDS = 3.0


@dataclass(frozen=True)
class Service:
    """What a test needs to send jobs and to see what became of them."""

    folder: Path
    settings: Settings
    client: Client
    ledger: Ledger
    environment: dict[str, str]

    def picture(self, name: str = "cat.png", size: tuple[int, int] = (64, 48)) -> str:
        """Draw an input picture; its URI."""
        path = self.folder / "in" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():  # a worker may be reading it
            Image.new("RGB", size, "orange").save(path)
        return path.as_uri()

    def submit(self, job_id: str, **fields: Any) -> str:
        """Submit an edit of a picture; its id."""
        fields.setdefault("image", self.picture())
        return self.client.submit(EditJob.model_validate({"id": job_id, "prompt": "make it snow", **fields}))

    def ended(self, job_id: str, timeout_seconds: float = PATIENCE_SECONDS) -> JobRecord:
        """Wait for a job's end."""
        eventually(lambda: self.ledger.get(job_id).state.is_terminal, timeout_seconds, what=f"the end of {job_id}")
        return self.ledger.get(job_id)

    def outputs(self) -> list[str]:
        """Names of everything in the output folder, temporary files included."""
        return sorted(path.name for path in (self.folder / "out").rglob("*") if path.is_file())


def is_sampling(service: Service, job_id: str) -> bool:
    """True once the job has done a step of sampling."""
    progress = service.ledger.get(job_id).progress
    return progress is not None and progress.stage == "sampling" and progress.step > 0


@pytest.fixture
def service(redis_server: RedisServer, tmp_path: Path) -> Service:
    environment = {
        "DG_BROKER_URL": redis_server.url,
        "DG_OUTPUT_URI": (tmp_path / "out").as_uri(),
        "DG_FILE_ROOTS": str(tmp_path / "in"),
        "DG_PRIVATE_HOSTS": "127.0.0.1",
        "DG_CALLBACK_SECRET": SECRET,
        "DG_LEASE_SECONDS": str(LEASE_SECONDS),
        "DG_FLUX_KONTEXT_ENGINE": "standin",
        "STANDIN_STEP_SECONDS": "0.1",
    }
    settings = load_settings(Settings, broker_url=redis_server.url, output_uri=environment["DG_OUTPUT_URI"])
    ledger = Ledger(connect(settings.redis_url))
    return Service(tmp_path, settings, Client(settings=settings), ledger, environment)


StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def start_worker(service: Service) -> Iterator[StartWorker]:
    """Start workers of the service by name; they end with the test."""
    with ExitStack() as stack:

        def start(name: str = "w1", ready: str | None = "worker_takes_jobs", **environment: str) -> WorkerProcess:
            merged = {**service.environment, **environment}
            return stack.enter_context(running_worker(name, service.folder, merged, ready=ready))

        yield start
