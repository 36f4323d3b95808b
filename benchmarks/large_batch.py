"""Seconds and memory of the producer's commands for a batch of 100,000 rows; of gallery and download for 10,000.

    python -m benchmarks.large_batch [--rows 100000] [--images 10000]

Each command runs as a person would run it, in a process of its own, against a private Redis; seconds include the start
of Python, memory is the process's highest. Seconds of the processor tell more than others on a busy machine. The jobs
are ended through the ledger, as workers do it, with outputs of 64x48 pixels on the disk: a gallery of larger images
takes the time to decode them on top.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from benchmarks.report import parser, publish
from jobs.ledger import PIPELINE_LENGTH, Ledger
from jobs.ledger.record import CANCELLED
from jobs.ledger.scripts import chunks
from jobs.schema import JobState, Outcome
from producer import Client
from producer.embedded.private_redis import private_folder, private_redis

LEASE_US = 600 * 10**6
INPUTS = 100
"""Files that the rows share."""


def measure(rows: int, images: int) -> dict[str, Any]:
    with private_folder() as folder, private_redis(folder) as broker_url:
        return {
            "rows": rows,
            **measure_rows(folder, broker_url, rows),
            "images": images,
            **measure_images(folder, broker_url, images),
        }


def measure_rows(folder: Path, broker_url: str, rows: int) -> dict[str, float]:
    table = write_table(folder, "rows", rows)
    submit = run_producer(
        folder, broker_url, "submit", "submit", str(table), "--batch", "rows", "--output", "s3://b/out"
    )
    end_all(Client(broker_url).ledger, "rows", None)
    commands = {
        "status": ("status", "rows"),
        "results": ("results", "rows", "-o", "results.csv"),
        "results_with_table": ("results", "rows", "--table", str(table), "-o", "results-of-table.csv"),
    }
    return submit | run_all(folder, broker_url, commands)


def measure_images(folder: Path, broker_url: str, images: int) -> dict[str, float]:
    table, out = write_table(folder, "images", images), (folder / "out").as_uri()
    run_producer(folder, broker_url, "", "submit", str(table), "--batch", "images", "--output", out)
    end_all(Client(broker_url).ledger, "images", folder / "in" / "0.png")
    commands = {
        "gallery": ("gallery", "images", "-o", "gallery.html"),
        "gallery_again": ("gallery", "images", "-o", "gallery.html"),
        "download": ("download", "images", "copy"),
        "download_again": ("download", "images", "copy"),
    }
    figures = run_all(folder, broker_url, commands)
    return figures | {"gallery_page_mib": round((folder / "gallery.html").stat().st_size / 2**20, 1)}


def run_all(folder: Path, broker_url: str, commands: dict[str, tuple[str, ...]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for name, arguments in commands.items():
        figures |= run_producer(folder, broker_url, name, *arguments)
    return figures


def write_table(folder: Path, name: str, rows: int) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    for number in range(INPUTS):
        Image.new("RGB", (64, 48), (number, 255 - number, 128)).save(folder / "in" / f"{number}.png")
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "seed", "campaign"])
        for row in range(rows):
            writer.writerow([f"in/{row % INPUTS}.png", f"make the background of image {row} blue", row, "spring"])
    return folder / f"{name}.csv"


def end_all(ledger: Ledger, batch: str, image: Path | None) -> None:
    """End every job of a batch as a worker does, with a copy of `image` as its output."""
    for page in chunks(ledger.batch_job_ids(batch), PIPELINE_LENGTH):
        outputs = {record.job.id: record.job.output or "" for record in ledger.get_many(page) if record is not None}
        ledger.scripts.run_many("claim", ([job_id, "worker", job_id, LEASE_US, ""] for job_id in outputs))
        ends = []
        for job_id, output in outputs.items():
            if image is not None:
                path = Path(unquote(urlsplit(output).path))
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(image, path)
            outcome = Outcome(output=output, width=64, height=48).model_dump_json()
            ends.append([job_id, job_id, JobState.SUCCEEDED, outcome, JobState.SUCCEEDED, CANCELLED])
        assert set(ledger.scripts.run_many("finish", ends)) == {JobState.SUCCEEDED}


def run_producer(folder: Path, broker_url: str, name: str, *arguments: str) -> dict[str, float]:
    """Run a command of the producer; figures under its name: seconds, the processor's, and the highest memory."""
    command = [sys.executable, "-m", "producer", *arguments]
    environment = {**os.environ, "DG_BROKER_URL": broker_url}
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {
        f"{name}_seconds": round(seconds, 2),
        f"{name}_processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        f"{name}_peak_mib": round(usage.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    publish("large_batch", measure(**vars(parser(__doc__, rows=100_000, images=10_000).parse_args())))
