"""Each fault once with the bundled model, for the table in docs/reliability.md.

    python -m tests.chaos.with_model [--only PARTS,OF,NAMES]

Two workers with the real engine on the CPU. Most faults begin while a job is sampling and last longer than a lease;
others need a job that waits, or one that fails and is retried by hand when the fault is over. The picture must have the
bytes of the undisturbed one, and every callback a signature that holds. Needs root, for a small disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from jobs.errors import ErrorCode
from jobs.ledger import JobRecord
from jobs.schema import JobState
from tests.chaos.bench import HOOK, LEASE_SECONDS, MAX_ATTEMPTS, SHORT_LEASE, Bench, running_bench
from tests.chaos.engines import PLACES
from tests.chaos.faults import FAULTS, Fault, receiver_down, redis_clock_ahead, redis_clock_behind
from tests.chaos.invariants import submit, wait_until_settled
from tests.chaos.narrow import killed_by_the_kernel, little_memory, small_disk
from tests.integration.conftest import SECRET, is_sampling
from tests.isolation import isolate_environment
from tests.servers.fake_clock import FakeClock
from tests.servers.http import Answer, running_http
from tests.servers.redis import running_redis
from tests.servers.s3 import running_s3
from tests.waiting import eventually, passing

STEPS = 20
HELD_SECONDS = LEASE_SECONDS + 1
END_SECONDS = 120
NO_ROOM_BYTES = 120 * 2**20
LARGE = {"width": 512, "height": 512, "size_mode": "reference", "num_inference_steps": 2}
"""A job that needs about twice as much."""

DISK_BYTES = 256 * 1024
UPLOADED_BYTES = 3000
"""Of an upload, before its connection is reset: more than its headers, less than its picture."""

ENGINE = {"DG_FLUX_KONTEXT_ENGINE": "tests.chaos.engines:native", "OMP_NUM_THREADS": "1"}

Act = Callable[[Bench, str], None]
"""Sends the job of that id, causes a fault, and returns when the job may go on to its good end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name has one of these in it, separated by commas")
    options = parser.parse_args()
    isolate_environment()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in ("redis", "s3", "work"):
            (root / part).mkdir()
        redis = stack.enter_context(running_redis(root / "redis", clock=FakeClock(root / "clock")))
        s3 = stack.enter_context(running_s3(root / "s3"))
        receiver = stack.enter_context(running_http())
        bench = stack.enter_context(running_bench(root / "work", redis, s3, receiver))
        print_table(bench, options.only.split(","))


def print_table(bench: Bench, parts: list[str]) -> None:
    say("| fault | runs ended as | attempts | callbacks received | seconds | picture |\n|---|---|---|---|---|---|")
    undisturbed = run_one(bench, "none", send, None)
    large = run_one(bench, "none, large", send_large, None)
    for name, act in acts().items():
        if any(part in name for part in parts):
            run_one(bench, name, act, large if "memory" in name else undisturbed)


def acts() -> dict[str, Act]:
    """Every fault by its name, and how it meets a job."""
    of_the_soak = {name: partial(while_sampling, FAULTS[name]) for name in FAULTS}
    of_the_soak |= {name: partial(while_queued, FAULTS[name]) for name in ("message_lost", "messages_doubled")}
    of_places: dict[str, Act] = {f"worker dies {place}": partial(dying, place) for place in PLACES}
    return {
        **of_the_soak,
        **of_places,
        "worker dies while sampling, three times": dying_each_time,
        "upload reset in the middle of its body": upload_reset,
        "disk full": disk_full,
        "store answers 403": store_forbidden,
        "receiver answers 410": receiver_gone,
        "worker's clock five hours ahead": worker_clock_wrong,
        "clock of Redis jumps five hours ahead, and back": partial(redis_clock_wrong, redis_clock_ahead),
        "clock of Redis jumps five hours back, and ahead": partial(redis_clock_wrong, redis_clock_behind),
        "no memory for the job": no_memory,
        "kernel kills for memory": killed_for_memory,
    }


def run_one(bench: Bench, name: str, act: Act, undisturbed: bytes | None) -> bytes:
    """Let one job meet one fault and print its row; the picture's bytes."""
    job_id = "".join(letter if letter.isalnum() else "-" for letter in name)
    revive(bench)
    before, started = len(bench.receiver.requests(HOOK)), time.monotonic()
    act(bench, job_id)
    record = ended(bench, job_id)
    seconds = time.monotonic() - started
    wait_until_settled(bench, END_SECONDS)
    callbacks = [request.verified(SECRET) for request in bench.receiver.requests(HOOK)[before:]]
    ids = {request.headers["webhook-id"] for request in bench.receiver.requests(HOOK)[before:]}
    assert {event["data"]["job_id"] for event in callbacks} == {job_id}
    picture = published(bench, record)
    verdict = "same bytes" if undisturbed in (None, picture) else f"DIFFERENT ({record.state})"
    reasons = ", ".join(attempt.reason for attempt in record.history)
    told = f"{len(callbacks)} ({len(ids)} ids)" if len(callbacks) > 1 else "1"
    say(f"| {name} | {reasons} | {record.attempts} | {told} | {seconds:.1f} | {verdict} |")
    return picture


def send(bench: Bench, job_id: str, output: str | None = None) -> None:
    submit(bench, job_id, params={"num_inference_steps": STEPS}, output=output)


def send_large(bench: Bench, job_id: str) -> None:
    submit(bench, job_id, params=LARGE)


def ended(bench: Bench, job_id: str) -> JobRecord:
    """Wait for a job's end; its record."""

    def is_over() -> JobRecord | None:
        with suppress(Exception):  # Redis may be away
            record = bench.ledger.get(job_id)
            return record if record.state.is_terminal else None
        return None

    return eventually(is_over, END_SECONDS, what=f"the end of {job_id}")  # type: ignore[return-value]


def failed_and_retried(bench: Bench, job_id: str, code: ErrorCode) -> None:
    """Let the job fail, put an end to what is narrow, and retry it by hand."""
    record = ended(bench, job_id)
    assert record.result.error is not None
    assert record.result.error.code is code, record.result.error
    bench.stop_workers()
    bench.store.status = None
    bench.start_workers("w1", "w2", **ENGINE)
    bench.client.retry(job_id)


# How faults meet a job


def while_sampling(fault: Fault, bench: Bench, job_id: str) -> None:
    in_bucket = fault.__name__.startswith("store_")
    send(bench, job_id, bench.bucket_uri(f"{job_id}.png") if in_bucket else None)
    eventually(lambda: is_sampling(bench, job_id))
    aim_at(bench, bench.ledger.get(job_id).worker or "")
    with fault(bench):
        passing(HELD_SECONDS)


def aim_at(bench: Bench, name: str) -> None:
    """Let chance, where it decides between the two workers or their lines, hit this one next."""
    while True:
        state = bench.random.getstate()
        if bench.random.choice(sorted(bench.lines)) == name:
            bench.random.setstate(state)
            return


def while_queued(fault: Fault, bench: Bench, job_id: str) -> None:
    bench.stop_workers()
    send(bench, job_id)
    with fault(bench):
        bench.start_workers("w1", "w2", **ENGINE)


def dying(place: str, bench: Bench, job_id: str) -> None:
    bench.stop_workers()
    bench.start_worker("w1", **ENGINE, CHAOS_DIES=place)
    send(bench, job_id)
    bench.workers["w1"].exit_code()
    bench.start_worker("w2", **ENGINE)


def dying_each_time(bench: Bench, job_id: str) -> None:
    bench.stop_workers()
    send(bench, job_id)
    fail_by_death(bench, job_id, CHAOS_DIES="while sampling")


def fail_by_death(bench: Bench, job_id: str, **deadly: str) -> None:
    for _ in range(MAX_ATTEMPTS):
        bench.begin_worker("w1", **ENGINE, **SHORT_LEASE, **deadly).exit_code()
    bench.begin_worker("w2", **ENGINE)
    failed_and_retried(bench, job_id, ErrorCode.WORKER_LOST)


def upload_reset(bench: Bench, job_id: str) -> None:
    send(bench, job_id, bench.bucket_uri(f"{job_id}.png"))
    eventually(lambda: is_sampling(bench, job_id))  # the write check is over
    bench.store_line.cut_after(UPLOADED_BYTES)
    ended(bench, job_id)
    assert not bench.store_line.will_cut


def disk_full(bench: Bench, job_id: str) -> None:
    with small_disk(bench.folder / "out" / "small", DISK_BYTES) as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(DISK_BYTES - 4096))
        uri = (disk / f"{job_id}.png").as_uri()
        send(bench, job_id, uri)
        eventually(lambda: bench.ledger.get(job_id).history)
        filler.unlink()
        ended(bench, job_id)
        kept = (disk / f"{job_id}.png").read_bytes()
    (bench.folder / "out" / "small" / f"{job_id}.png").write_bytes(kept)  # where it is looked for


def store_forbidden(bench: Bench, job_id: str) -> None:
    bench.store.status = 403
    send(bench, job_id, bench.bucket_uri(f"{job_id}.png"))
    failed_and_retried(bench, job_id, ErrorCode.OUTPUT_FORBIDDEN)


def receiver_gone(bench: Bench, job_id: str) -> None:
    bench.receiver.answer(HOOK, Answer(410))
    send(bench, job_id)
    eventually(lambda: bench.ledger.get(job_id).callback == "dropped")
    passing(HELD_SECONDS)  # in which nobody asks again
    bench.receiver.answer(HOOK, Answer(204))


def worker_clock_wrong(bench: Bench, job_id: str) -> None:
    bench.stop_workers()
    bench.start_worker("w1", **ENGINE, CHAOS_CLOCK="wrong")
    send(bench, job_id)
    ended(bench, job_id)


def redis_clock_wrong(jump: Fault, bench: Bench, job_id: str) -> None:
    send(bench, job_id)
    eventually(lambda: is_sampling(bench, job_id))
    with receiver_down(bench), jump(bench):  # a callback of the wrong time would be refused
        ended(bench, job_id)
        passing(HELD_SECONDS)


def no_memory(bench: Bench, job_id: str) -> None:
    bench.stop_workers()
    bench.start_worker("w1", **ENGINE, CHAOS_MEMORY_BYTES=str(NO_ROOM_BYTES))
    send_large(bench, job_id)
    failed_and_retried(bench, job_id, ErrorCode.OUT_OF_MEMORY)


def killed_for_memory(bench: Bench, job_id: str) -> None:
    with little_memory(NO_ROOM_BYTES) as group:
        if group is None:
            raise SystemExit("no control group can be made here: needs root and a writable /sys/fs/cgroup")
        bench.stop_workers()
        send_large(bench, job_id)
        fail_by_death(bench, job_id, CHAOS_CGROUP=str(group))
        assert killed_by_the_kernel(group) == MAX_ATTEMPTS


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


def revive(bench: Bench) -> None:
    """Two workers that work, none with an old fault in it."""
    bench.stop_workers()
    bench.start_workers("w1", "w2", **ENGINE)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
