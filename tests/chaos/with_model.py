"""Each fault once with the bundled model, for the table in docs/reliability.md.

    python -m tests.chaos.with_model

Two workers with the real engine on the CPU; each fault begins while a job is sampling, or the worker dies at its place.
The picture must have the bytes of the undisturbed one, and the end must be reported.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from jobs.record import JobRecord
from jobs.schema import JobState
from tests.chaos.bench import LEASE_SECONDS, Bench, running_bench
from tests.chaos.engines import PLACES
from tests.chaos.faults import FAULTS
from tests.chaos.invariants import submit, wait_until_settled
from tests.integration.test_promises import is_sampling
from tests.isolation import isolate_environment
from tests.servers.http import running_http
from tests.servers.redis import running_redis
from tests.servers.s3 import running_s3
from tests.waiting import eventually

STEPS = 20
WITHOUT_A_MESSAGE = ("message_lost", "messages_doubled")  # a job that is sampling has none to lose or to double
HELD_SECONDS = LEASE_SECONDS + 1
END_SECONDS = 120
ENGINE = {"DG_FLUX_KONTEXT_ENGINE": "tests.chaos.engines:native", "OMP_NUM_THREADS": "1"}


def main() -> None:
    isolate_environment()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in ("redis", "s3", "work"):
            (root / part).mkdir()
        with (
            running_redis(root / "redis") as redis,
            running_s3(root / "s3") as s3,
            running_http() as receiver,
            running_bench(root / "work", redis, s3, receiver) as bench,
        ):
            print_table(bench)


def print_table(bench: Bench) -> None:
    say("| fault | attempts | callbacks received | seconds | picture |\n|---|---|---|---|---|")
    bench.start_workers("w1", "w2", **ENGINE)
    undisturbed = run_one(bench, "none", lambda: None, None)
    for name in FAULTS:
        if name in WITHOUT_A_MESSAGE:
            continue
        revive(bench)
        run_one(bench, name, partial(hold, bench, name), undisturbed)
    for place in PLACES:
        bench.stop_workers()
        bench.start_worker("w1", **ENGINE, CHAOS_DIES=place)
        run_one(bench, place, lambda: bring_another(bench), undisturbed, waits=False)


def run_one(bench: Bench, name: str, cause: Callable[[], None], undisturbed: bytes | None, waits: bool = True) -> bytes:
    """Run one job through one fault and print its row; the picture's bytes."""
    job_id = name.replace(" ", "-").replace(",", "")
    before, started = len(bench.receiver.requests("/hook")), time.monotonic()
    output = bench.bucket_uri(f"{job_id}.png") if name.startswith("store_") else None
    submit(bench, job_id, params={"num_inference_steps": STEPS}, output=output)
    if waits:
        eventually(lambda: is_sampling(bench, job_id), 30)
    cause()
    eventually(lambda: has_ended(bench, job_id), END_SECONDS, what=job_id)
    seconds = time.monotonic() - started
    wait_until_settled(bench, END_SECONDS)
    record = bench.ledger.get(job_id)
    picture = published(bench, record)
    verdict = "same bytes" if undisturbed in (None, picture) else f"DIFFERENT ({record.state})"
    received = len(bench.receiver.requests("/hook")) - before
    say(f"| {name} | {record.attempts} | {received} | {seconds:.1f} | {verdict} |")
    return picture


def published(bench: Bench, record: JobRecord) -> bytes:
    """The bytes of a job's picture; none when it has not succeeded."""
    output = record.job.output or ""
    if record.state is not JobState.SUCCEEDED:
        return b""
    if output.startswith("file://"):
        return Path(urlsplit(output).path).read_bytes()
    client = bench.s3.client()
    with closing(client):
        data: bytes = client.get_object(Bucket=bench.bucket, Key=output.rpartition("/")[2])["Body"].read()
    return data


def hold(bench: Bench, name: str) -> None:
    """Cause a fault for longer than a lease."""
    with FAULTS[name](bench):
        time.sleep(HELD_SECONDS)


def has_ended(bench: Bench, job_id: str) -> JobRecord | None:
    with suppress(Exception):  # Redis may be away
        record = bench.ledger.get(job_id)
        return record if record.state.is_terminal else None
    return None


def revive(bench: Bench) -> None:
    for name in ("w1", "w2"):
        if bench.workers[name].process.poll() is not None:
            bench.start_worker(name, **ENGINE)


def bring_another(bench: Bench) -> None:
    bench.workers["w1"].exit_code(60)
    bench.start_worker("w2", **ENGINE)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
