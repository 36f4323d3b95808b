"""The receivers in examples/, as people start them, with callbacks that a worker sends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from jobs.schema import JobEvent
from producer import verify_callback
from tests.integration.conftest import SECRET, Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import free_port
from tests.waiting import eventually

RECEIVERS = Path(__file__).parent.parent.parent / "examples" / "receivers"
COMMANDS = {
    "fastapi": ("-m", "uvicorn", "fastapi_receiver:app", "--port"),
    "django": ("django_receiver.py", "runserver", "--noreload"),
}


@contextmanager
def running(name: str, port: int, log: Path) -> Iterator[None]:
    """A receiver that runs inside the `with` block."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, *COMMANDS[name], str(port)],
            cwd=RECEIVERS,
            env={**os.environ, "PYTHONPATH": str(RECEIVERS.parent.parent), "DG_CALLBACK_SECRET": SECRET},
            stdout=file,
            stderr=file,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def forged(url: str) -> int | None:
    """The answer to a callback that nobody has signed; None while the receiver does not answer."""
    headers = {"webhook-id": "msg_1", "webhook-timestamp": "1", "webhook-signature": "v1,AAAA"}
    try:
        return httpx2.post(url, content=b"{}", headers=headers, trust_env=False).status_code
    except httpx2.TransportError:
        return None


def test_receivers_take_what_a_worker_sends_and_refuse_what_is_forged(
    service: Service, start_worker: StartWorker
) -> None:
    ports = {name: free_port() for name in COMMANDS}
    urls = {name: f"http://127.0.0.1:{port}/hook" for name, port in ports.items()}
    logs = {name: service.folder / f"{name}.log" for name in COMMANDS}
    start_worker()
    with running("fastapi", ports["fastapi"], logs["fastapi"]), running("django", ports["django"], logs["django"]):
        answers = {name: eventually(lambda url=url: forged(url), what=str(logs[name])) for name, url in urls.items()}
        for name, url in urls.items():
            service.submit(f"{name}-job", callback={"url": url}, params={"num_inference_steps": 1})
        eventually(lambda: all(f"{name}-job file://" in log.read_text() for name, log in logs.items()))
        eventually(lambda: all(service.ledger.get(f"{name}-job").callback == "delivered" for name in COMMANDS))

    assert answers == {"fastapi": 401, "django": 401}


def test_a_receiver_that_asks_for_it_hears_of_start_and_progress(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    url = http_server.answer("/hook", Answer(204))
    start_worker()
    asked = {"url": url, "events": ["started", "progress", "cancelled"]}
    service.submit("a", callback=asked, params={"num_inference_steps": 1000})

    def heard() -> list[JobEvent]:
        requests = http_server.requests("/hook")
        return [verify_callback(request.body, request.headers, SECRET, url) for request in requests]

    eventually(lambda: {event.type for event in heard()} == {"edit.started", "edit.progress"})
    service.client.cancel("a")
    eventually(lambda: heard()[-1].type == "edit.cancelled")

    progress = [event.progress for event in heard() if event.type == "edit.progress"]
    assert all(told and told.total_steps == 1000 and told.step > 0 for told in progress)
