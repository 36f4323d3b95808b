"""Jobs and callbacks without code of ours: messages by hand from Python and Node, and a receiver on Node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from jobs.schema import JobState
from tests.integration.conftest import SECRET, Service, StartWorker
from tests.requirements import require
from tests.servers.redis import free_port
from tests.waiting import eventually

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENTS = {"python": ("plain_redis.py", sys.executable), "node": ("plain_redis.mjs", "node")}
FORGED = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}


@pytest.fixture(autouse=True)
def node() -> None:
    require(shutil.which("node"), "no node: sudo apt-get install nodejs")


def answer_to_forged(url: str) -> int | None:
    try:
        return httpx2.post(url, content=b"{}", headers=FORGED, trust_env=False).status_code
    except httpx2.TransportError:
        return None


def test_messages_by_hand_are_jobs_and_node_reads_their_callbacks(service: Service, start_worker: StartWorker) -> None:
    port, log = free_port(), service.folder / "receiver.log"
    url = f"http://127.0.0.1:{port}/hook"
    start_worker()
    with log.open("wb") as file:
        receiver = subprocess.Popen(
            ["node", str(EXAMPLES / "receivers" / "node_receiver.mjs"), str(port)],
            env={**os.environ, "DG_CALLBACK_SECRET": f"whsec_{'A' * 32} {SECRET}"},
            stdout=file,
            stderr=file,
        )
    try:
        assert eventually(lambda: answer_to_forged(url), what=str(log)) == 401
        sent = {}
        for name, (script, program) in CLIENTS.items():
            job = {"image": service.picture(), "prompt": "make it snöw", "callback": {"url": url}, "id": f"by-{name}"}
            command = [program, str(EXAMPLES / "submitting" / script), service.settings.broker_url, json.dumps(job)]
            sent[name] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        assert sent == {name: f"by-{name}" for name in CLIENTS}
        for job_id in sent.values():
            eventually(lambda job_id=job_id: service.ledger.get_many([job_id])[0])
            eventually(lambda job_id=job_id: service.ledger.get(job_id).callback == "delivered")
            record = service.ledger.get(job_id)
            assert (record.state, record.job.prompt) == (JobState.SUCCEEDED, "make it snöw")
        eventually(lambda: all(f"{job_id} file://" in log.read_text() for job_id in sent.values()))
    finally:
        receiver.kill()
        receiver.wait()


def test_a_redis_that_refuses_is_told_by_the_node_client(service: Service) -> None:
    url = service.settings.broker_url.replace("redis://", "redis://nobody:wrong@")

    ended = subprocess.run(
        ["node", str(EXAMPLES / "submitting" / "plain_redis.mjs"), url, '{"image": "s3://b/a.png", "prompt": "x"}'],
        capture_output=True,
        text=True,
    )

    assert ended.returncode != 0
    assert "WRONGPASS" in ended.stderr
