"""What must hold when the dust has settled, looked at from outside: in Redis, in the stores, at the receiver."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from jobs.ledger import JobRecord
from jobs.queue import QUEUE
from jobs.schema import EditJob, JobState
from tests.chaos.bench import HOOK, MAX_ATTEMPTS, Bench
from tests.chaos.expected import Expected
from tests.integration.conftest import SECRET
from tests.waiting import eventually

SETTLED_SECONDS = 60.0
OPEN_INDEXES = ("queued", "delayed", "running", "outbox")
LASTING_KEYS = ("worker", "workers", "place", "claims", "batches", "dead-letters")
"""Keys under the ledger's prefix that are counters, bounded, or renewed every second."""


@dataclass
class Received:
    """The callbacks that have come in so far, each checked while its signature is fresh."""

    bench: Bench
    looked_at: int = 0
    by_job: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """Job id -> {(webhook id, event type)}."""

    def collect(self) -> None:
        for request in self.bench.receiver.requests(HOOK)[self.looked_at :]:
            event = request.verified(SECRET)
            self.by_job[event["data"]["job_id"]].add((request.headers["webhook-id"], event["type"]))
            self.looked_at += 1


def submit(bench: Bench, job_id: str, seed: int = 7, **fields: Any) -> dict[str, Expected]:
    """Submit a job with a callback, known by the colour of its picture."""
    fields = {"callback": {"url": bench.hook}, "image": bench.input, **fields}
    params = {"num_inference_steps": 2, "seed": seed, **fields.pop("params", {})}
    bench.client.submit(EditJob.model_validate({"id": job_id, "prompt": "make it snow", "params": params, **fields}))
    return {job_id: Expected(seed)}


def wait_until_settled(bench: Bench, timeout_seconds: float = SETTLED_SECONDS) -> None:
    """Wait until no job is open and no callback is due."""

    def is_settled() -> bool:
        return not any(bench.ledger.queue_counts().values())

    eventually(is_settled, timeout_seconds, what="no job open and no callback due")


def broken_promises(bench: Bench, jobs: Mapping[str, Expected], received: Received | None = None) -> list[str]:
    """One line for each promise that does not hold; empty when all is well."""
    received = received or Received(bench)
    received.collect()
    records = {job_id: bench.ledger.get_many([job_id])[0] for job_id in jobs}
    said = [f"{job_id}: lost, the ledger does not know it" for job_id, record in records.items() if record is None]
    for job_id, record in records.items():
        if record is not None:
            said += _broken_for(bench, record, jobs[job_id], received.by_job[job_id])
    strangers = received.by_job.keys() - jobs.keys()
    said += [f"{job_id}: a callback for a job that nobody submitted" for job_id in strangers]
    return [*said, *wrong_counts(bench), *leftovers(bench, jobs)]


def _broken_for(bench: Bench, record: JobRecord, expected: Expected, callbacks: set[tuple[str, str]]) -> Iterator[str]:
    job_id, state = record.job.id, record.state
    error = record.outcome.error
    is_spent = expected.may_be_spent and record.attempts == MAX_ATTEMPTS and error is not None and error.retryable
    if state not in expected.states and not is_spent:
        yield f"{job_id}: {state}, expected {' or '.join(expected.states)} ({error.message if error else 'no error'})"
    if record.attempts > MAX_ATTEMPTS:
        yield f"{job_id}: {record.attempts} attempts, more than {MAX_ATTEMPTS}"
    endings = [attempt.reason for attempt in record.history if attempt.reason == JobState.SUCCEEDED]
    if len(endings) != (state is JobState.SUCCEEDED):
        yield f"{job_id}: {state}, but its history ends {len(endings)} times in success"
    if state is JobState.SUCCEEDED and (colour := colour_at(bench, record.job.output or "")) != _colour(expected.seed):
        yield f"{job_id}: succeeded, its picture is {colour or 'missing'}, not {_colour(expected.seed)}"
    if record.job.callback and callbacks != {(f"msg_{job_id}_{state}", f"edit.{state}")}:
        yield f"{job_id}: {state}, received callbacks {sorted(callbacks)}; the ledger says {record.callback}"


def wrong_counts(bench: Bench) -> Iterator[str]:
    """Batches whose counts are not those of their jobs, and tenants who seem to have jobs still."""
    for batch in bench.ledger.batches():
        ids = list(bench.ledger.batch_job_ids(batch.name))
        found = Counter(record.state for record in bench.ledger.get_many(ids) if record is not None)
        if any(batch.counts[state] != found[state] for state in JobState):
            yield f"batch {batch.name!r}: counts {batch.counts} of jobs that are {dict(found)}"
        if any(record.job.batch != batch.name for record in bench.ledger.get_many(ids) if record is not None):
            yield f"batch {batch.name!r}: has jobs of another one"
    yield from (f"tenant {name!r}: {counts}" for name, counts in bench.ledger.tenant_counts().items())


def leftovers(bench: Bench, jobs: Mapping[str, Expected]) -> Iterator[str]:
    """What should be gone when nothing runs any more."""
    redis, prefix = bench.redis.client(), bench.ledger.key()
    with redis:
        counts = {name: redis.zcard(prefix + name) for name in OPEN_INDEXES}
        counts |= {QUEUE: redis.llen(QUEUE), "unacked": redis.hlen("unacked")}  # the latter is Celery's own
        yield from (f"{count} left in {name}" for name, count in counts.items() if count)
        for key in redis.scan_iter(f"{prefix}*", count=1000):
            if redis.ttl(key) == -1 and key.removeprefix(prefix).partition(":")[0] not in LASTING_KEYS:
                yield f"key {key} stays for ever"
    yield from (f"file {name} left" for name in bench.outputs() if Path(name).stem not in jobs)
    client = bench.s3.client()
    for upload in client.list_multipart_uploads(Bucket=bench.bucket).get("Uploads", []):
        yield f"multipart upload of {upload['Key']} left"
    for item in client.list_objects_v2(Bucket=bench.bucket).get("Contents", []):
        if Path(item["Key"]).stem not in jobs:
            yield f"object {item['Key']} left"
    client.close()


def colour_at(bench: Bench, uri: str) -> tuple[int, ...] | None:
    """The colour of a published picture; None when there is none or it is not whole."""
    try:
        with Image.open(io.BytesIO(READERS[urlsplit(uri).scheme](bench, uri))) as picture:
            colour: Any = picture.convert("RGB").getpixel((picture.width - 1, picture.height - 1))
    except Exception:  # missing, cut short, not a picture: all the same here
        return None
    return tuple(colour)


def _read_file(bench: Bench, uri: str) -> bytes:
    return Path(urlsplit(uri).path).read_bytes()


def _read_object(bench: Bench, uri: str) -> bytes:
    client = bench.s3.client()
    try:
        return bytes(client.get_object(Bucket=bench.bucket, Key=urlsplit(uri).path.lstrip("/"))["Body"].read())
    finally:
        client.close()


READERS: dict[str, Callable[[Bench, str], bytes]] = {"file": _read_file, "s3": _read_object}


def _colour(seed: int) -> tuple[int, int, int]:
    """What the stand-in engine paints."""
    return (seed % 256, seed // 256 % 256, 0)
