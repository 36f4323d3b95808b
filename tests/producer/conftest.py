"""What the producer's tests share: a client of a real Redis, jobs, and the command as people run it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from jobs.ledger import Claim
from jobs.schema import EditJob, JobState, Outcome
from producer import Client
from producer.cli import main
from producer.diffgentor import main as diffgentor_main
from tests.producer.browsing import browser, open_page
from tests.servers.redis import RedisServer

__all__ = ["browser", "open_page"]

ROOT = Path(__file__).parent.parent.parent
STANDIN = Path(__file__).parent / "standin"


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


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Command(Protocol):
    """Runs `producer` with arguments, standard input and variables."""

    def __call__(self, *arguments: str | Path, stdin: str = "", **environment: str) -> Ended: ...


@pytest.fixture
def run_main(
    tmp_path: Path,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str, Callable[[], None]], Command]:
    """Makes a command of a program's `main`, which saves the start of Python; `worker run` is the stand-in."""

    def command(program: str, main: Callable[[], None]) -> Command:
        def run(*arguments: str | Path, stdin: str = "", **environment: str) -> Ended:
            with monkeypatch.context() as patch:
                patch.chdir(tmp_path)
                patch.setattr(sys, "argv", [program, *map(str, arguments)])
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
                for name, value in producer_environment(redis_server, **environment).items():
                    patch.setenv(name, value)
                with pytest.raises(SystemExit) as ended:
                    main()
            code = ended.value.code or 0
            assert isinstance(code, int)
            return Ended(code, *capsys.readouterr())

        return run

    return command


@pytest.fixture
def producer(run_main: Callable[[str, Callable[[], None]], Command]) -> Command:
    """The command `producer`."""
    return run_main("producer", main)


@pytest.fixture
def diffgentor(run_main: Callable[[str, Callable[[], None]], Command]) -> Command:
    """The command `diffgentor`."""
    return run_main("diffgentor", diffgentor_main)


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
