"""A private Redis, real worker processes with the stand-in engine, and jobs for them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from jobs.ledger import Ledger
from jobs.settings import BrokerSettings, load_settings
from producer import Client, EditJob
from producer.embedded.child import start_child, stop_child
from producer.embedded.private_redis import private_folder, private_redis

STEPS_PER_SECOND = 4.0
"""The real model's on a fast GPU; jobs choose their length by their number of steps."""

START_SECONDS = 60
STOP_SECONDS = 20


@dataclass(frozen=True)
class Bench:
    """A private Redis, its client, and a folder for inputs, outputs and logs."""

    folder: Path
    broker_url: str
    client: Client

    @property
    def ledger(self) -> Ledger:
        return self.client.ledger

    def job(self, job_id: str, steps: int = 1, **fields: Any) -> EditJob:
        """A job with an image on disk, unless `fields` say otherwise."""
        defaults = {"image": (self.folder / "in.png").as_uri(), "prompt": "-"}
        params = {"num_inference_steps": steps}
        return EditJob.model_validate({"id": job_id, "params": params, **defaults, **fields})

    def wait_for_end(self, job_id: str) -> None:
        while not (record := self.client.get(job_id)).state.is_terminal:
            time.sleep(0.02)
        if record.state != "succeeded":
            raise SystemExit(f"{job_id} {record.state}: {record.outcome.error}")

    def turns(self, worker: str = "w0") -> list[tuple[float, float]]:
        """Begin and end of each of a worker's turns on the GPU, seconds since 1970."""
        path = self.folder / f"turns-{worker}"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(float(began_at), float(ended_at)) for began_at, ended_at in map(str.split, lines)]


@contextmanager
def bench() -> Iterator[Bench]:
    with private_folder() as folder, private_redis(folder) as broker_url:
        Image.new("RGB", (64, 64), "orange").save(folder / "in.png")
        settings = load_settings(BrokerSettings, broker_url=broker_url, output_uri=(folder / "out").as_uri())
        yield Bench(folder, broker_url, Client(settings=settings))


@contextmanager
def running_workers(
    bench: Bench, count: int = 1, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[None]:
    """Run workers `w0`, `w1`, ..., begun once all of them take jobs; `variables` win over the defaults."""
    settings = {
        "DG_BROKER_URL": bench.broker_url,
        "DG_FLUX_KONTEXT_ENGINE": "standin",
        "STANDIN_STEP_SECONDS": str(1 / STEPS_PER_SECOND),
        "DG_OUTPUT_URI": (bench.folder / "out").as_uri(),
        "DG_FILE_ROOTS": str(bench.folder),
        "DG_RUNTIME_DIR": str(bench.folder / "runtime"),
        **variables,
    }
    with ExitStack() as stack:
        logs = [stack.enter_context(_running_worker(bench.folder, f"w{number}", settings)) for number in range(count)]
        for log in logs:
            _wait_until_it_takes_jobs(log)
        yield


@contextmanager
def _running_worker(folder: Path, name: str, settings: dict[str, str]) -> Iterator[Path]:
    log = folder / f"{name}.log"
    own = {"DG_WORKER_NAME": name, "STANDIN_TURNS": str(folder / f"turns-{name}")}
    process = start_child([sys.executable, "-m", "worker", "run"], log, {**os.environ, **settings, **own})
    try:
        yield log
    finally:
        stop_child(process, STOP_SECONDS)


def _wait_until_it_takes_jobs(log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while "worker_takes_jobs" not in log.read_text():
        if time.monotonic() > deadline:
            raise SystemExit(f"the worker does not start:\n{log.read_text()}")
        time.sleep(0.05)
