"""What the service adds to a job, and how much of the GPU's time it wastes.

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

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

from benchmarks.report import write_result
from benchmarks.workers import picture, running_workers, submit, turns, wait_for_end
from producer import Client
from producer.embedded.private_redis import private_folder, private_redis

NETWORK_SECONDS = 0.3
START_ROUNDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    jobs, workers = arguments.jobs, arguments.workers
    figures = {"jobs": jobs, **measure(1, jobs), f"with_{workers}_workers": measure(workers, jobs)}
    path = write_result("overhead", figures)
    sys.stdout.write(f"{path.read_text()}{path}\n")


def measure(workers: int, jobs: int) -> dict[str, Any]:
    """Start the service with that many workers and measure it."""
    with private_folder() as folder, private_redis(folder) as broker_url, slow_network() as url:
        (folder / "in.png").write_bytes(picture())
        network = {
            "DG_BUCKETS": "bucket",
            "DG_PRIVATE_HOSTS": "127.0.0.1",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        with running_workers(folder, broker_url, workers, network) as client:
            first = measure_overhead(client, folder, jobs) if workers == 1 else measure_start(client, folder, workers)
            return {**first, **measure_idle(client, folder, url, workers, jobs)}


def measure_overhead(client: Client, folder: Path, jobs: int) -> dict[str, float]:
    """Run jobs one after the other; milliseconds that are not the engine's."""
    added = []
    for number in range(jobs):
        job_id = submit(client, f"one-{number}", (folder / "in.png").as_uri(), steps=1)
        wait_for_end(client, job_id)
        began_at, ended_at = turns(folder)[-1]
        seconds = client.get(job_id).seconds
        assert seconds is not None
        added.append(1000 * (seconds - (ended_at - began_at)))
    return {
        "overhead_median_ms": round(statistics.median(added), 1),
        "overhead_p95_ms": round(statistics.quantiles(added, n=20)[-1], 1),
    }


def measure_start(client: Client, folder: Path, workers: int) -> dict[str, float]:
    """Submit a job for each idle worker at once; milliseconds until the last of them was begun, over some rounds."""
    until_last = []
    for number in range(START_ROUNDS):
        before = [len(turns(folder, name)) for name in names(workers)]
        submitted_at = time.time()
        image = (folder / "in.png").as_uri()
        for job_id in [submit(client, f"round-{number}-{job}", image, steps=4) for job in range(workers)]:
            wait_for_end(client, job_id)
        begun = [
            turn[0] for name, seen in zip(names(workers), before, strict=True) for turn in turns(folder, name)[seen:]
        ]
        until_last.append(1000 * (max(begun) - submitted_at))
    return {
        "all_start_median_ms": round(statistics.median(until_last), 1),
        "all_start_longest_ms": round(max(until_last), 1),
    }


def measure_idle(client: Client, folder: Path, url: str, workers: int, jobs: int) -> dict[str, Any]:
    """Run a backlog; for each worker the share of the time in which the GPU's turn was nobody's."""
    before = [len(turns(folder, name)) for name in names(workers)]
    count = jobs * workers
    ids = [submit(client, f"many-{n}", f"{url}/in.png", 4, f"s3://bucket/out/{n}.png") for n in range(count)]
    for job_id in ids:
        wait_for_end(client, job_id)
    used = [turns(folder, name)[seen:] for name, seen in zip(names(workers), before, strict=True)]
    gaps = sorted(later[0] - earlier[1] for one in used for earlier, later in pairwise(one))
    return {
        "idle_percent": max(idle_percent(one) for one in used),
        "longest_gap_ms": round(1000 * gaps[-1], 1),
        "median_gap_ms": round(1000 * statistics.median(gaps), 1),
    }


def idle_percent(used: list[tuple[float, float]]) -> float:
    busy = sum(ended_at - began_at for began_at, ended_at in used)
    return round(100 * (1 - busy / (used[-1][1] - used[0][0])), 2)


def names(workers: int) -> list[str]:
    return [f"w{number}" for number in range(workers)]


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
