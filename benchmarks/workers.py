"""Real worker processes with the stand-in engine, and jobs for them."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from jobs.settings import BrokerSettings, load_settings
from producer import Client, EditJob
from producer.embedded.child import start_child, stop_child

STEPS_PER_SECOND = 4.0
"""The real model's on a fast GPU; jobs choose their length by their number of steps."""

START_SECONDS = 60
STOP_SECONDS = 20


@contextmanager
def running_workers(
    folder: Path, broker_url: str, count: int = 1, variables: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Client]:
    """Start workers `w0`, `w1`, ... and yield a client once all of them take jobs; `variables` win over the defaults.

    Inputs and outputs lie in `folder`, and `turns(folder, name)` tells when a worker's engine was at work.
    """
    output_uri = (folder / "out").as_uri()
    settings = {
        "DG_BROKER_URL": broker_url,
        "DG_FLUX_KONTEXT_ENGINE": "standin",
        "STANDIN_STEP_SECONDS": str(1 / STEPS_PER_SECOND),
        "DG_OUTPUT_URI": output_uri,
        "DG_FILE_ROOTS": str(folder),
        "DG_RUNTIME_DIR": str(folder / "runtime"),
        **variables,
    }
    with ExitStack() as stack:
        logs = [stack.enter_context(_running_worker(folder, f"w{number}", settings)) for number in range(count)]
        for log in logs:
            _wait_until_it_takes_jobs(log)
        yield Client(settings=load_settings(BrokerSettings, broker_url=broker_url, output_uri=output_uri))


def submit(client: Client, job_id: str, image: str, steps: int, output: str | None = None) -> str:
    job = {"id": job_id, "image": image, "prompt": "-", "output": output, "params": {"num_inference_steps": steps}}
    return client.submit(EditJob.model_validate(job))


def wait_for_end(client: Client, job_id: str) -> None:
    while not (record := client.get(job_id)).state.is_terminal:
        time.sleep(0.02)
    if record.state != "succeeded":
        raise SystemExit(f"{job_id} {record.state}: {record.outcome.error}")


def turns(folder: Path, worker: str = "w0") -> list[tuple[float, float]]:
    """When each of a worker's turns began and ended, seconds since 1970."""
    path = folder / f"turns-{worker}"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(began_at), float(ended_at)) for began_at, ended_at in map(str.split, lines)]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(buffer, "PNG")
    return buffer.getvalue()


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
