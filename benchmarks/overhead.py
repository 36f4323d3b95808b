"""What the service adds to a job, and how much of the GPU's time it wastes.

    python -m benchmarks.overhead [--jobs 40]

A real worker with a stand-in engine of known time, a private Redis, and a web server and store that answer late.

- overhead: one job at a time on an idle worker, local files, 0.25 s of engine; from submit to the terminal state, less
  the engine's time.
- idle: a backlog of jobs of 1 s each, every one with 300 ms of download before and 300 ms of upload after; the share
  of the time between the first turn and the last in which nobody had the GPU's turn.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread

from PIL import Image

from benchmarks.report import write_result
from producer import Client, EditJob
from producer.child import start_child, stop_child
from producer.private_redis import private_folder, private_redis

NETWORK_SECONDS = 0.3
START_SECONDS = 60
STOP_SECONDS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    jobs = parser.parse_args().jobs
    with private_folder() as folder, private_redis(folder) as broker_url, slow_network() as url:
        (folder / "in.png").write_bytes(picture())
        with running_worker(folder, broker_url, url) as client:
            figures = {
                "jobs": jobs,
                **measure_overhead(client, folder, jobs),
                **measure_idle(client, folder, url, jobs),
            }
    path = write_result("overhead", figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


def measure_overhead(client: Client, folder: Path, jobs: int) -> dict[str, float]:
    """Run jobs one after the other; milliseconds that are not the engine's."""
    added = []
    for number in range(jobs):
        job_id = submit(client, f"one-{number}", (folder / "in.png").as_uri(), None, steps=1)
        wait_for_end(client, job_id)
        began_at, ended_at = turns(folder)[-1]
        seconds = client.get(job_id).seconds
        assert seconds is not None
        added.append(1000 * (seconds - (ended_at - began_at)))
    return {
        "overhead_median_ms": round(statistics.median(added), 1),
        "overhead_p95_ms": round(statistics.quantiles(added, n=20)[-1], 1),
    }


def measure_idle(client: Client, folder: Path, url: str, jobs: int) -> dict[str, float]:
    """Run a backlog; the share of the time in which the GPU's turn was nobody's."""
    before = len(turns(folder))
    ids = [submit(client, f"many-{n}", f"{url}/in.png", f"s3://bucket/out/{n}.png", steps=4) for n in range(jobs)]
    for job_id in ids:
        wait_for_end(client, job_id)
    used = turns(folder)[before:]
    span = used[-1][1] - used[0][0]
    busy = sum(ended_at - began_at for began_at, ended_at in used)
    gaps = sorted(later[0] - earlier[1] for earlier, later in pairwise(used))
    return {
        "idle_percent": round(100 * (1 - busy / span), 2),
        "longest_gap_ms": round(1000 * gaps[-1], 1),
        "median_gap_ms": round(1000 * statistics.median(gaps), 1),
    }


def submit(client: Client, job_id: str, image: str, output: str | None, steps: int) -> str:
    job = {"id": job_id, "image": image, "prompt": "-", "output": output, "params": {"num_inference_steps": steps}}
    return client.submit(EditJob.model_validate(job))


def wait_for_end(client: Client, job_id: str) -> None:
    while not (record := client.get(job_id)).state.is_terminal:
        time.sleep(0.02)
    if record.state != "succeeded":
        raise SystemExit(f"{job_id} {record.state}: {record.outcome.error}")


def turns(folder: Path) -> list[tuple[float, float]]:
    """When each turn began and ended, in the order of their ends."""
    lines = (folder / "turns").read_text().splitlines()
    return [(float(began_at), float(ended_at)) for began_at, ended_at in map(str.split, lines)]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "orange").save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def running_worker(folder: Path, broker_url: str, url: str) -> Iterator[Client]:
    """A worker with the stand-in engine, and a client once it takes jobs."""
    settings = {
        "DG_BROKER_URL": broker_url,
        "DG_FLUX_KONTEXT_ENGINE": "benchmarks.standin:load",
        "STANDIN_TURNS": str(folder / "turns"),
        "DG_OUTPUT_URI": (folder / "out").as_uri(),
        "DG_FILE_ROOTS": str(folder),
        "DG_BUCKETS": "bucket",
        "DG_PRIVATE_HOSTS": "127.0.0.1",
        "DG_RUNTIME_DIR": str(folder / "runtime"),
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    os.environ["DG_OUTPUT_URI"] = settings["DG_OUTPUT_URI"]
    log = folder / "worker.log"
    process = start_child([sys.executable, "-m", "worker", "run"], log, {**os.environ, **settings})
    try:
        deadline = time.monotonic() + START_SECONDS
        while "worker_takes_jobs" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the worker does not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield Client(broker_url)
    finally:
        stop_child(process, STOP_SECONDS)


class LateAnswers(BaseHTTPRequestHandler):
    """A picture to download, and a store that takes any object, each after `NETWORK_SECONDS`."""

    protocol_version = "HTTP/1.1"
    picture = picture()

    def do_GET(self) -> None:
        time.sleep(NETWORK_SECONDS)
        self._answer(self.picture)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(NETWORK_SECONDS)
        self._answer(b"")

    def do_POST(self) -> None:
        """The beginning of a multipart upload, with which the worker asks whether it may write."""
        self._answer(b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>")

    def do_DELETE(self) -> None:
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def slow_network() -> Iterator[str]:
    """Run the late web server and store; their address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), LateAnswers)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
