"""Inputs that do not come, and images that do not decode, cost their own jobs and nobody else."""

from __future__ import annotations

import io
import signal
import time

import pytest
from PIL import Image

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.integration.conftest import Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.waiting import eventually, stretched

QUICK = {"num_inference_steps": 2}
SILENT = Answer(delay_seconds=60)


def stage_of(service: Service, job_id: str) -> str | None:
    progress = service.ledger.get(job_id).progress
    return progress.stage if progress else None


def bomb(scans: int) -> bytes:
    """A JPEG of a few kilobytes that decodes for minutes: the same scan over a large image again and again.

    Each scan says that nothing changes, which takes a decoder a walk over all blocks.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000), "orange").save(buffer, "JPEG", progressive=True, quality=50)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    scan = data[last:].removesuffix(b"\xff\xd9")
    return data[:last] + scan * scans + b"\xff\xd9"


def test_a_silent_source_a_cancel_a_deadline_and_a_bomb_cost_their_own_jobs_only(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    worker = start_worker("w1", DG_INPUT_STALL_SECONDS="3", DG_OUTAGE_SECONDS="0", DG_DECODE_SECONDS="4")
    silent = [http_server.answer(f"/silent{number}.png", SILENT) for number in range(3)]
    heavy = service.folder / "in" / "bomb.jpg"  # not from that host, which is taken for silent
    heavy.parent.mkdir(exist_ok=True)
    heavy.write_bytes(bomb(3000))
    for name, image, limit in (("stalls", silent[0], None), ("cancelled", silent[1], None), ("late", silent[2], 2)):
        service.submit(name, image=image, timeout_seconds=limit)
    eventually(lambda: stage_of(service, "cancelled") == "fetching")

    service.ledger.cancel("cancelled")
    cancelled_at = time.monotonic()
    cancelled = service.ended("cancelled")
    cancel_seconds = time.monotonic() - cancelled_at
    service.submit("bomb", image=heavy.as_uri())
    for number in range(4):
        service.submit(f"good{number}", params=QUICK)
    good = [service.ended(f"good{number}") for number in range(4)]

    assert cancelled.state is JobState.CANCELLED
    assert cancel_seconds < stretched(3)  # a poll of the lease and one of the transfer
    assert {record.state for record in good} == {JobState.SUCCEEDED}
    stalled, late, bombed = (service.ended(name) for name in ("stalls", "late", "bomb"))
    assert stalled.result.error is not None
    assert "sent nothing for 3 s (DG_INPUT_STALL_SECONDS)" in stalled.result.error.message
    assert late.result.error is not None
    assert late.result.error.code is ErrorCode.DEADLINE_EXCEEDED
    assert bombed.result.error is not None
    assert bombed.result.error.code is ErrorCode.INPUT_NOT_AN_IMAGE
    assert "longer than 4 s to decode (DG_DECODE_SECONDS)" in bombed.result.error.message
    assert worker.process.poll() is None


def test_a_drain_does_not_wait_for_a_silent_source(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    worker = start_worker("w1", DG_DRAIN_SECONDS="2")
    service.submit("a", image=http_server.answer("/silent.png", SILENT))
    eventually(lambda: stage_of(service, "a") == "fetching")

    worker.signal(signal.SIGTERM)

    assert worker.exit_code() == 0
    record = service.ledger.get("a")
    assert (record.state, record.attempts) == (JobState.QUEUED, 0)


def test_a_worker_that_still_loads_ends_at_once_on_sigterm(service: Service, start_worker: StartWorker) -> None:
    worker = start_worker("w1", ready=None, DG_FLUX_KONTEXT_ENGINE="tests.integration.engines:slow_to_load")
    worker.wait_until_logged("loading for a minute")

    worker.signal(signal.SIGTERM)
    signalled_at = time.monotonic()

    assert worker.exit_code() == 0
    assert time.monotonic() - signalled_at < stretched(5)
    assert "worker_stopped" in worker.log


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_what_is_no_image_says_so_from_the_helper_process(
    data: bytes, service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    start_worker("w1")
    service.submit("a", image=http_server.serve_file("/x", data))

    record = service.ended("a")

    assert record.result.error is not None
    assert record.result.error.code is ErrorCode.INPUT_NOT_AN_IMAGE
