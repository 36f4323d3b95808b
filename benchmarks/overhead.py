"""Time that the service adds to a job, and share of the GPU's time that it wastes.

    python -m benchmarks.overhead [--jobs 40] [--workers 2]

Real workers with a stand-in engine of known time, a private Redis, and a web server and store that answer late.

- overhead: one job at a time on an idle worker, local files, 0.25 s of engine; from submit to the terminal state, less
  the engine's time.
- idle: a backlog of jobs of 1 s each, every one with 300 ms of download before and 300 ms of upload after; the share
  of the time between a worker's first turn and its last in which nobody had the GPU's turn; one worker alone, then
  `--workers` of them on one backlog, each with `--jobs` jobs on average.
- start: as many jobs as workers, submitted together while all are idle; how long until the last of them has a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from threading import Thread
from typing import Any

from benchmarks.report import parser, publish
from benchmarks.workers import Bench, bench, running_workers
from producer import EditJob

NETWORK_SECONDS = 0.3
START_ROUNDS = 10


def measure(jobs: int, workers: int) -> dict[str, Any]:
    return {"jobs": jobs, **measure_service(1, jobs), f"with_{workers}_workers": measure_service(workers, jobs)}


def measure_service(workers: int, jobs: int) -> dict[str, Any]:
    """Start the service with that many workers and measure it."""
    with bench() as service, slow_network((service.folder / "in.png").read_bytes()) as url:
        network = {
            "DG_BUCKETS": "bucket",
            "DG_PRIVATE_HOSTS": "127.0.0.1",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with running_workers(service, workers, network):
            first = measure_overhead(service, jobs) if workers == 1 else measure_start(service, workers)
            return {**first, **measure_idle(service, url, workers, jobs)}


def measure_overhead(service: Bench, jobs: int) -> dict[str, float]:
    """Run jobs one after the other; milliseconds that are not the engine's."""
    added = []
    for number in range(jobs):
        job_id = service.client.submit(service.job(f"one-{number}"))
        service.wait_for_end(job_id)
        began_at, ended_at = service.turns()[-1]
        seconds = service.client.get(job_id).seconds
        assert seconds is not None
        added.append(1000 * (seconds - (ended_at - began_at)))
    return {
        "overhead_median_ms": round(statistics.median(added), 1),
        "overhead_p95_ms": round(statistics.quantiles(added, n=20)[-1], 1),
    }


def measure_start(service: Bench, workers: int) -> dict[str, float]:
    """Submit a job for each idle worker at once; milliseconds until the last of them was begun, over some rounds."""
    until_last = []
    for number in range(START_ROUNDS):
        submitted_at = time.time()
        jobs = [service.job(f"round-{number}-{job}", steps=4) for job in range(workers)]
        used = turns_of(service, workers, jobs)
        until_last.append(1000 * (max(began_at for one in used for began_at, _ in one) - submitted_at))
    return {
        "all_start_median_ms": round(statistics.median(until_last), 1),
        "all_start_longest_ms": round(max(until_last), 1),
    }


def measure_idle(service: Bench, url: str, workers: int, jobs: int) -> dict[str, Any]:
    """Run a backlog; for each worker the share of the time in which the GPU's turn was nobody's."""
    backlog = [
        service.job(f"many-{number}", 4, image=f"{url}/in.png", output=f"s3://bucket/out/{number}.png")
        for number in range(jobs * workers)
    ]
    used = turns_of(service, workers, backlog)
    gaps = sorted(later[0] - earlier[1] for one in used for earlier, later in pairwise(one))
    return {
        "idle_percent": max(idle_percent(one) for one in used),
        "longest_gap_ms": round(1000 * gaps[-1], 1),
        "median_gap_ms": round(1000 * statistics.median(gaps), 1),
    }


def idle_percent(used: list[tuple[float, float]]) -> float:
    busy = sum(ended_at - began_at for began_at, ended_at in used)
    return round(100 * (1 - busy / (used[-1][1] - used[0][0])), 2)


def turns_of(service: Bench, workers: int, jobs: list[EditJob]) -> list[list[tuple[float, float]]]:
    """Run the jobs to their end; each worker's turns meanwhile."""
    names = [f"w{number}" for number in range(workers)]
    before = [len(service.turns(name)) for name in names]
    for job_id in [service.client.submit(job) for job in jobs]:
        service.wait_for_end(job_id)
    return [service.turns(name)[seen:] for name, seen in zip(names, before, strict=True)]


class LateAnswers(BaseHTTPRequestHandler):
    """An image to download, and a store that takes any object, each after `NETWORK_SECONDS`."""

    protocol_version = "HTTP/1.1"
    image: bytes

    def do_GET(self) -> None:
        time.sleep(NETWORK_SECONDS)
        self._answer(self.image)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        time.sleep(NETWORK_SECONDS)
        self._answer(b"")

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
def slow_network(image: bytes) -> Iterator[str]:
    """Run the late web server and store; their address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Late", (LateAnswers,), {"image": image}))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    publish("overhead", measure(**vars(parser(__doc__, jobs=40, workers=2).parse_args())))
