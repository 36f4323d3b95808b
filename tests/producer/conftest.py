"""What the producer's tests share: a client of a real Redis, jobs, and the command as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.ledger import Claim
from jobs.schema import EditJob, JobState, Outcome
from producer import Client
from tests.servers.redis import RedisServer

ROOT = Path(__file__).parent.parent.parent
STANDIN = Path(__file__).parent / "standin"

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Client]:
    client = Client(redis_server.url)
    yield client
    client.ledger.redis.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two pictures, and a table `data.csv` that names them."""
    (tmp_path / "cat.png").write_bytes(b"cat")
    (tmp_path / "dog.png").write_bytes(b"dog")
    (tmp_path / "data.csv").write_text("image,prompt,campaign\ncat.png,snow,spring\ndog.png,rain,autumn\n")
    return tmp_path


@pytest.fixture
def producer(tmp_path: Path, redis_server: RedisServer) -> Command:
    """The command `producer`, run in `tmp_path`; `worker run` is the stand-in there."""

    def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            producer_command(*arguments),
            cwd=tmp_path,
            env=producer_environment(redis_server, **environment),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def producer_command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "producer", *map(str, arguments)]


def producer_environment(redis_server: RedisServer, **environment: str) -> dict[str, str]:
    paths = os.pathsep.join([str(STANDIN), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "DG_BROKER_URL": redis_server.url, **environment}


def make_job(job_id: str = "one", **fields: object) -> EditJob:
    return EditJob.model_validate({"id": job_id, "image": "s3://bucket/cat.png", "prompt": "snow", **fields})


def finish(client: Client, job_id: str, state: JobState = JobState.SUCCEEDED, **outcome: object) -> None:
    """Do what a worker does with one job."""
    claim = client.ledger.claim(job_id, "worker-1", 30)
    assert isinstance(claim, Claim)
    result = Outcome.model_validate({"output": claim.job.output, **outcome})
    assert client.ledger.finish(job_id, claim.token, state, result)
