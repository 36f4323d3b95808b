"""Tables submitted by a `producer submit` whose terminal goes away, and by the same command again."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random

from producer.exit_codes import ExitCode
from tests.chaos.bench import Bench
from tests.chaos.expected import Expected
from tests.servers.worker import ROOT

ROWS = 6
LONGEST_SECONDS = 120
PASSING = (ExitCode.BROKER_UNAVAILABLE, ExitCode.QUEUE_FULL)


def submit_and_hang_up(bench: Bench, random: Random, name: str) -> dict[str, Expected]:
    """Submit a table, hang up in the middle, and submit it again; the jobs that now must be there.

    Raises:
        AssertionError: the second submit says anything but that all is queued.
    """
    rows = {f"{name}-{number}": random.randrange(2**16) for number in range(ROWS)}
    table = bench.folder / f"{name}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "prompt", "seed", "num_inference_steps", "output"])
        for job_id, seed in rows.items():
            writer.writerow([job_id, bench.input, "make it snow", seed, 3, f"{job_id}.png"])
    first = _submit(bench, table, "--wait")
    with suppress(subprocess.TimeoutExpired):
        first.wait(random.uniform(0.5, 4))
    if first.poll() is None:
        first.send_signal(signal.SIGHUP)
    first.wait(LONGEST_SECONDS)
    while (code := _submit(bench, table).wait(LONGEST_SECONDS)) in PASSING:
        pass
    log = table.with_suffix(".log").read_text()
    assert code == ExitCode.OK, f"{name}: submitted again after SIGHUP, exit code {code}: {log[-500:]}"
    return {job_id: Expected(seed, may_be_spent=True) for job_id, seed in rows.items()}


def _submit(bench: Bench, table: Path, *options: str) -> subprocess.Popen[bytes]:
    environment: Mapping[str, str] = {
        **os.environ,
        **bench.environment,
        "DG_BROKER_URL": bench.redis.url,
        "PYTHONPATH": str(ROOT),
    }
    with table.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "producer", "submit", str(table), *options],
            env=environment,
            cwd=bench.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
