"""What the door's tests share: a door on a free port, a worker that answers at once, and clients of both."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from PIL import Image

from jobs.errors import ErrorCode
from jobs.ledger import Claim, Ledger, Progress
from jobs.schema import ErrorInfo, JobState, Outcome
from jobs.settings import load_settings
from producer import Client
from producer.files import local_path
from producer.http.app import make_app
from producer.http.server import DoorServer
from producer.http.settings import HttpSettings
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually

REQUEST_SECONDS = PATIENCE_SECONDS


def png(colour: str = "orange", size: tuple[int, int] = (64, 48)) -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


DATA = f"data:image/png;base64,{base64.b64encode(png()).decode()}"


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def error_of(response: httpx2.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


def is_image(path: Path | None) -> bool:
    try:
        Image.open(path or "").close()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class RunningDoor:
    """A door that runs, and the client of the Redis behind it."""

    url: str
    app: Any
    server: DoorServer
    client: Client

    def http(self, key: str | None = None, **options: Any) -> httpx2.Client:
        """An HTTP client for it; whoever asks for it closes it."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=REQUEST_SECONDS, trust_env=False, **options)


OpenDoor = Callable[..., RunningDoor]


@contextmanager
def running_door(redis_server: RedisServer, folder: Path, **settings: Any) -> Iterator[RunningDoor]:
    """A door that runs inside the `with` block, in a thread."""
    given = {"broker_url": redis_server.url, "output_uri": (folder / "out").as_uri(), "http_port": 0, **settings}
    loaded = load_settings(HttpSettings, **given)
    app = make_app(loaded)

    def stop_waits() -> None:
        app.state.door.is_closing = True

    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, log_level="warning", access_log=False)
    server = DoorServer(config, stop_waits, lambda: None)
    thread = threading.Thread(target=server.run, name="door")
    thread.start()
    client = Client(settings=loaded)
    try:
        eventually(lambda: server.started or not thread.is_alive(), what="the door is open")
        port = server.servers[0].sockets[0].getsockname()[1]
        yield RunningDoor(f"http://127.0.0.1:{port}", app, server, client)
    finally:
        stop_waits()
        server.should_exit = True
        thread.join()
        client.ledger.redis.close()


@pytest.fixture
def open_door(redis_server: RedisServer, tmp_path: Path) -> Iterator[OpenDoor]:
    """Opens doors with settings of the test's own; they close with the test."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(running_door(redis_server, tmp_path, **settings))


class Workers(threading.Thread):
    """A worker that edits at once: it reads the first input and writes an image of the asked size.

    A prompt of one word names how it behaves: `fail`, `refuse`, `break`; `hold` waits until the test says `release`.
    """

    def __init__(self, client: Client) -> None:
        super().__init__(name="worker")
        self._ledger: Ledger = client.ledger
        self._ending = threading.Event()
        self.released = threading.Event()
        self.broken: BaseException | None = None

    def run(self) -> None:
        while not self._ending.wait(0.01):
            claim = self._ledger.claim_best("worker-1", 60)
            if isinstance(claim, Claim):
                self._work(claim)

    def end(self) -> None:
        self._ending.set()
        self.released.set()
        self.join()

    def _work(self, claim: Claim) -> None:
        job, token = claim.job, claim.token
        faults = {
            "fail": ErrorInfo(code=ErrorCode.INPUT_NOT_AN_IMAGE, message="not a picture"),
            "refuse": ErrorInfo(code=ErrorCode.INVALID_JOB, message="the engine cannot"),
            "break": ErrorInfo(code=ErrorCode.ENGINE_FAILED, message="the engine raised", retryable=True),
        }
        self._ledger.renew(job.id, token, 60, Progress("sampling", 3, 30))
        if job.prompt == "hold":
            self.released.wait()
        error = faults.get(job.prompt) or (None if is_image(local_path(job.image[0])) else faults["fail"])
        if error is not None:
            self._ledger.finish(job.id, token, JobState.FAILED, Outcome(error=error))
            return
        source, target = local_path(job.image[0]), local_path(job.output or "")
        assert source is not None
        assert target is not None
        with Image.open(source) as image:
            size = (job.params.width or image.width, job.params.height or image.height)
        target.parent.mkdir(parents=True, exist_ok=True)
        seed = job.params.seed or 0
        Image.new("RGB", size, (seed % 256, 0, 0)).save(target, job.params.output_format or "png")
        outcome = Outcome(output=job.output, width=size[0], height=size[1])
        self._ledger.finish(job.id, token, JobState.SUCCEEDED, outcome)


@pytest.fixture
def workers(client: Client) -> Iterator[Workers]:
    """A worker on `redis_server`."""
    worker = Workers(client)
    worker.start()
    yield worker
    worker.end()


@pytest.fixture
def door(open_door: OpenDoor) -> RunningDoor:
    """A door without keys."""
    return open_door()


@pytest.fixture
def http(door: RunningDoor) -> Iterator[httpx2.Client]:
    """An HTTP client of `door`."""
    with door.http() as client:
        yield client
