"""`producer serve` as a process: it opens, serves, and closes in order; alone and with all it needs."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from producer import Client
from tests.producer.conftest import Command, producer_command, producer_environment
from tests.producer.http.conftest import png
from tests.servers.redis import RedisServer
from tests.waiting import PATIENCE_SECONDS, eventually


@contextmanager
def serving(
    folder: Path, environment: dict[str, str], *options: str
) -> Iterator[tuple[httpx2.Client, subprocess.Popen[bytes]]]:
    """`producer serve` on a free port, and an HTTP client for it."""
    log = folder / "serve.log"
    with log.open("wb") as file:
        command = producer_command("serve", "--port", "0", *options)
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=file, stderr=file)
    try:
        eventually(lambda: b"open at" in log.read_bytes() or process.poll() is not None, what=f"{log}: open")
        found = re.search(r"open at (http://\S+)/", log.read_text())
        assert found is not None, log.read_text()
        with httpx2.Client(base_url=found[1], timeout=PATIENCE_SECONDS, trust_env=False) as http:
            eventually(lambda: is_alive(http))
            yield http, process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def is_alive(http: httpx2.Client) -> bool:
    try:
        return http.get("/livez").status_code == 200
    except httpx2.TransportError:
        return False


def upload(http: httpx2.Client, **headers: str) -> httpx2.Response:
    return http.post(
        "/v1/edits", files={"image": ("cat.png", png())}, data={"job": '{"prompt": "make it snow"}'}, headers=headers
    )


def test_it_serves_and_sigterm_closes_it_while_a_caller_waits(
    redis_server: RedisServer, client: Client, tmp_path: Path
) -> None:
    environment = producer_environment(redis_server)
    with serving(tmp_path, environment) as (http, process):
        job_id = upload(http).json()["id"]
        with http.stream("GET", f"/v1/edits/{job_id}/events") as events:
            lines = events.iter_lines()
            assert next(lines) == "event: queued"
            process.send_signal(signal.SIGTERM)
            assert not any(line.startswith("event") for line in lines)
        assert process.wait(PATIENCE_SECONDS) == 0

    assert client.ledger.waiting() == 1, "the job goes on"
    log = (tmp_path / "serve.log").read_text()
    assert "Traceback" not in log
    assert "request method=POST path=/v1/edits status=202" in log


def test_embedded_it_brings_a_redis_and_a_worker_and_leaves_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    environment = producer_environment(redis_server, DG_OUTPUT_URI=(tmp_path / "out").as_uri())
    with serving(tmp_path, environment, "--embedded") as (http, process):
        ended = upload(http, Prefer="wait=600").json()
        assert (ended["state"], http.get(ended["image_url"]).content) == ("succeeded", png())
        children = set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0

    assert children
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_an_embedded_worker_that_cannot_work_ends_the_door(redis_server: RedisServer, tmp_path: Path) -> None:
    environment = producer_environment(redis_server, STANDIN_BROKEN="1")
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = producer_command("serve", "--port", "0", "--embedded")
        code = subprocess.run(command, env=environment, cwd=tmp_path, stderr=file, timeout=PATIENCE_SECONDS).returncode

    assert code == 5
    assert "no model at /models/kontext" in log.read_text()


def test_a_port_that_is_taken_is_told(redis_server: RedisServer, producer: Command) -> None:
    ended = producer("serve", "--port", str(redis_server.port))

    assert ended.returncode == 2
    assert f"127.0.0.1:{redis_server.port} cannot be opened" in ended.stderr


def test_without_its_extra_it_says_what_to_install(producer: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "uvicorn" or name.startswith("producer.http.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)

    ended = producer("serve")

    assert ended.returncode == 2
    assert "pip install 'kontext-edits[http]'" in ended.stderr
