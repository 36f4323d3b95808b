"""Rows per second of `producer submit`, from a CSV file on disk to messages in Redis.

    python -m benchmarks.submit [--rows 100000]

Runs `producer submit` as a person would, in a process of its own, against a private Redis: the table is read twice
(once to check it), every row is validated and written to the ledger, every message sent. The parts are measured too.
"""

from __future__ import annotations

import asyncio
import csv
import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import parser, publish
from benchmarks.timing import timed
from jobs.queue import EditQueue
from jobs.schema import EditJob
from producer import AsyncClient, Client
from producer.embedded.private_redis import private_folder, private_redis
from producer.table.plan import RowDefaults
from producer.table.table import open_table

PART_ROWS = 20_000
OUTPUT = "s3://bucket/out"


def measure(rows: int) -> dict[str, Any]:
    with private_folder() as folder, private_redis(folder) as broker_url:
        return {"rows": rows, **measure_command(folder, broker_url, rows), **measure_parts(folder, broker_url)}


def measure_command(folder: Path, broker_url: str, rows: int) -> dict[str, float]:
    """Time the whole command, start of Python included."""
    table = write_table(folder / "table.csv", rows)
    submit = partial(run_producer, broker_url, "submit", str(table), "--output", OUTPUT)
    seconds, again = timed(submit), timed(submit)
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "rows_per_second": round(rows / seconds),
        "seconds": round(seconds, 2),
        "same_table_again_rows_per_second": round(rows / again),
        "peak_memory_mib": round(peak_kib / 1024, 1),
    }


def measure_parts(folder: Path, broker_url: str) -> dict[str, int]:
    """Time reading and checking, the ledger, and the queue, each alone; then a service's clients, which do both."""
    client = Client(broker_url)
    queue = EditQueue(client.ledger.redis)
    with open_table(str(write_table(folder / "part.csv", PART_ROWS))) as table:
        plan = table.plan(OUTPUT, RowDefaults())
        jobs = [row.job for row in table.rows(plan) if row.job is not None]
        sync, from_a_loop = renamed(jobs, "sync"), renamed(jobs, "async")
        parts = {
            "check": timed(lambda: sum(1 for _ in table.rows(plan))),
            "ledger": timed(lambda: sum(1 for _ in client.ledger.submit(jobs, OUTPUT))),
            "queue": timed(lambda: queue.send(job.id for job in jobs)),
            "client": timed(lambda: sum(1 for _ in client.submit_many(sync))),
            "async_client": timed(lambda: asyncio.run(submit_from_a_loop(broker_url, from_a_loop))),
        }
    return {f"{name}_rows_per_second": round(PART_ROWS / seconds) for name, seconds in parts.items()}


def renamed(jobs: list[EditJob], prefix: str) -> list[EditJob]:
    """The same jobs under other ids."""
    return [job.model_copy(update={"id": f"{prefix}-{number}"}) for number, job in enumerate(jobs)]


async def submit_from_a_loop(broker_url: str, jobs: list[EditJob]) -> None:
    async with AsyncClient(broker_url) as client:
        async for _ in client.submit_many(jobs):
            pass


def write_table(path: Path, rows: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "seed", "campaign"])
        for row in range(rows):
            writer.writerow([f"s3://bucket/in/{row}.png", f"make the background of picture {row} blue", row, "spring"])
    return path


def run_producer(broker_url: str, *arguments: str) -> None:
    """Run a command of the producer in a process of its own."""
    command = [sys.executable, "-m", "producer", *arguments]
    environment = {**os.environ, "DG_BROKER_URL": broker_url}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    publish("submit", measure(**vars(parser(__doc__, rows=100_000).parse_args())))
