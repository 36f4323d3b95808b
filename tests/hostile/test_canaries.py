"""Secrets planted wherever the service has or is sent some: none of them comes out anywhere else."""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from celery import Celery
from PIL import Image
from prometheus_client import generate_latest

from jobs.ledger import Outbox
from jobs.queue import QUEUE, TASK
from jobs.settings import load_settings
from producer import Client, EditJob
from tests.hostile.image_files import PNG
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer, free_port, running_redis
from tests.servers.s3 import S3Server
from tests.servers.worker import ROOT, WorkerProcess, running_worker
from tests.storage.raw_server import raw_server, sends
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.metrics.queue import queue_registry
from worker.settings import Settings


def canary(name: str) -> str:
    return f"c4n4ry{name}"


def webhook_secret(name: str) -> str:
    return "whsec_" + base64.b64encode(canary(name).encode()).decode()


OPERATORS = {
    "broker password": canary("broker"),
    "password of the proxy": canary("proxy"),
    "token of the collector": canary("collector"),
    "token of the hub": f"hf_{canary('hub')}",
    "callback secret": webhook_secret("callback"),
    "callback secret of one receiver": webhook_secret("receiver"),
    "session token of AWS": canary("session"),
}
"""What the operator sets; it may come out nowhere at all."""

COLLECTED = "/v1/traces"
BATCH = "canaries"
DOOR = ("-m", "producer", "serve", "--port", "0")
OF_THE_SENDER = ("results", "results as JSON", "gallery")
SENDERS = {
    "prompt": canary("prompt"),
    "signature of an image": canary("signature"),
    "signature of a redirect": canary("redirect"),
    "signature of a LoRA": canary("lora"),
    "signature of an output": canary("output"),
    "token of a callback": canary("hook"),
    "a message of nobody": canary("stranger"),
}
"""What jobs carry; logs, errors, results, callbacks, metrics and process lists must not have it."""


CALLERS = {
    "key of a caller": f"dg_{canary('key')}",
    "key of nobody": f"dg_{canary('nobody')}",
    "prompt in an address": canary("query"),
}
"""What requests to the door carry."""

SENDERS_OWN = {"prompt", "signature of an image"}
"""What stands in the results and the gallery of a batch: they are the sender's table, and show its images."""


@dataclass
class Place:
    """A running service with every secret in it."""

    folder: Path
    redis: RedisServer
    http: HttpServer
    environment: dict[str, str]

    def command(self, *words: str) -> str:
        """What a command says, on both streams."""
        ended = subprocess.run(
            [sys.executable, "-m", *words],
            env={**os.environ, **self.environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        return ended.stdout + ended.stderr

    def gallery(self) -> str:
        """The page of the batch and everything beside it."""
        page = self.folder / "page" / "gallery.html"
        page.parent.mkdir()
        said = self.command("producer", "gallery", BATCH, "--output", str(page))
        return said + "".join(_read(path) for path in page.parent.rglob("*") if path.is_file())

    def signed(self, path: str, *answers: Answer, secret: str = "signature of an image") -> str:
        """An address with a signature, as presigned links have it."""
        return self.http.answer(path, *answers) + f"?X-Amz-Credential=me&X-Amz-Signature={SENDERS[secret]}"


@pytest.fixture
def place(tmp_path: Path, s3_server: S3Server, http_server: HttpServer) -> Iterator[Place]:
    password = OPERATORS["broker password"]
    with (
        running_redis(tmp_path, login=f":{password}", requirepass=password) as redis,
        raw_server(sends(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")) as proxy_port,
    ):
        environment = {
            "DG_BROKER_URL": redis.url,
            "DG_OUTPUT_URI": (tmp_path / "out").as_uri(),
            "DG_FILE_ROOTS": f"{tmp_path / 'in'}:{tmp_path / 'out' / 'uploads'}",
            "DG_API_KEYS": f"shop:{hashlib.sha256(CALLERS['key of a caller'].encode()).hexdigest()}",
            "DG_PRIVATE_HOSTS": "127.0.0.1",
            "DG_PROXY": f"http://user:{OPERATORS['password of the proxy']}@127.0.0.1:{proxy_port}",
            "DG_BUCKETS": "no-such-bucket",
            "DG_OUTPUT_HOSTS": "127.0.0.1",
            "DG_OUTAGE_SECONDS": "0",
            "DG_MAX_ATTEMPTS": "1",
            "DG_CALLBACK_SECRET": OPERATORS["callback secret"],
            "DG_CALLBACK_SECRETS": f"127.0.0.1={OPERATORS['callback secret of one receiver']}",
            "DG_FLUX_KONTEXT_ENGINE": "standin",
            "DG_LORA_CACHE_DIR": str(tmp_path / "loras"),
            "DG_RUNTIME_DIR": str(tmp_path / "runtime"),
            "DG_LOG_LEVEL": "DEBUG",
            "HF_TOKEN": OPERATORS["token of the hub"],
            "DG_METRICS_PORT": str(free_port()),
            "OTEL_EXPORTER_OTLP_ENDPOINT": http_server.answer(COLLECTED, Answer(200)).removesuffix(COLLECTED),
            "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={OPERATORS['token of the collector']}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            **s3_server.environment,
            "AWS_SESSION_TOKEN": OPERATORS["session token of AWS"],
        }
        yield Place(tmp_path, redis, http_server, environment)


def page(port: str, path: str) -> str:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
        return str(answer.read().decode())
    return ""


def jobs(place: Place) -> list[dict[str, Any]]:
    """Jobs that succeed and jobs that fail in every way that speaks of an address; each with a secret in it."""
    good = place.signed("/good.png", Answer(body=PNG))
    away = f"http://127.0.0.1:{free_port()}/a.png?sig={SENDERS['signature of an image']}"
    moved = place.signed("/moved.png", Answer.redirect(f"/gone.png?sig={SENDERS['signature of a redirect']}"))
    inside = place.signed("/in.png", Answer.redirect(f"http://10.0.0.1/a?sig={SENDERS['signature of a redirect']}"))
    lora = place.signed("/lora.safetensors", Answer(body=b"no LoRA"), secret="signature of a LoRA")
    images = [
        good,
        away,
        moved,
        inside,
        place.signed("/page.png", Answer.html()),
        place.signed("/refused.png", Answer(403)),
        place.signed("/broken.png", Answer(500)),
        place.signed("/cut.png", Answer(body=PNG, missing_bytes=100)),
        place.signed("/odd.png", Answer(body=PNG, headers={"Content-Encoding": "odd"})),
        f"http://93.184.216.34/a.png?sig={SENDERS['signature of an image']}",  # by way of the proxy
        f"http://127.0.0.1:port/a.png?sig={SENDERS['signature of an image']}",
        f"https://example.org:22/a.png?sig={SENDERS['signature of an image']}",
        "s3://no-such-bucket/a.png",
    ]
    hook = place.signed("/hook", Answer(204), secret="token of a callback")
    refused = place.signed("/refusing", Answer(500), secret="token of a callback")
    dead = f"http://127.0.0.1:{free_port()}/hook?token={SENDERS['token of a callback']}"
    fields = [{"image": image, "callback": {"url": hook}} for image in images]
    fields += [{"image": good, "callback": {"url": url}} for url in (refused, dead)]
    fields += [{"image": good, "params": {"loras": [lora]}}, {"image": good, "output": "s3://no-such-bucket/a.png"}]
    for code in (200, 403, 500):
        link = place.signed(f"/put-{code}.png", Answer(code), secret="signature of an output")
        fields.append({"image": good, "output": link})
    prompt = f"make it snow {SENDERS['prompt']}"
    return [{"prompt": prompt, "params": {"num_inference_steps": 1}, "batch": BATCH, **each} for each in fields]


def answers_of_door(door: WorkerProcess) -> str:
    """What a door answers to good, refused and malformed requests, with all its headers."""
    found = re.search(r"open at (http://\S+?)/ ", door.log)
    assert found is not None
    image = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    good = {"image": image, "prompt": f"make it snow {SENDERS['prompt']}", "params": {"num_inference_steps": 1}}
    signed = f"http://127.0.0.1:1/a.png?X-Amz-Signature={SENDERS['signature of an image']}"
    hook = {"url": f"http://127.0.0.1:1/hook?token={SENDERS['token of a callback']}"}
    cut_off = f'{{"prompt": "{SENDERS["prompt"]}'
    key, strange = ({"Authorization": f"Bearer {CALLERS[name]}"} for name in ("key of a caller", "key of nobody"))
    with httpx2.Client(base_url=found[1], timeout=PATIENCE_SECONDS, trust_env=False) as http:
        done = http.post("/v1/edits", json=good, headers={**key, "Prefer": "wait=600", "Idempotency-Key": "order"})
        assert done.json()["state"] == "succeeded", done.text
        answers = [
            done,
            http.post("/v1/edits", json={**good, "image": signed}, headers=key),
            http.post("/v1/edits", json={**good, "callback": hook}, headers=key),
            http.post("/v1/edits", json=good, headers=strange),
            http.post("/v1/images/edits", params={"prompt": CALLERS["prompt in an address"]}, json=good, headers=key),
            http.post("/v1/edits", content=cut_off, headers={**key, "Content-Type": "application/json"}),
            http.get("/v1/edits/order/events", headers=key),
            http.get("/v1/edits/nowhere", headers=key),
            *(http.get(path) for path in ("/", "/openapi.json", "/readyz", "/v1/edits/order")),
        ]
    assert {answer.status_code for answer in answers} == {200, 400, 401, 404}
    return "\n".join(f"{answer.headers}\n{answer.text}" for answer in answers)


def send_plainly(place: Place) -> list[str]:
    """Send what no client of ours would: a job that is none, and a message of somebody else's."""
    secret = SENDERS["a message of nobody"]
    wrong = {"image": f"gopher://host/?sig={SENDERS['signature of an image']}", "prompt": f"{SENDERS['prompt']} \ud800"}
    with Celery(broker=place.redis.url) as celery:
        celery.send_task(TASK, queue=QUEUE, args=[wrong], task_id="wrong")
        celery.send_task("somebody.elses", queue=QUEUE, args=[secret], kwargs={"password": secret})
        celery.send_task(TASK, queue=QUEUE, args=[secret, secret], expires=-60.0)
    eventually(lambda: Client(place.redis.url).ledger.get_many(["wrong"])[0])
    return ["wrong"]


def command_lines() -> str:
    """What `ps` shows of every process."""
    return "".join(_read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))


def environments_of_decoders(worker: WorkerProcess) -> str:
    """The environment of the processes that meet the bytes of strangers."""
    children = Path(f"/proc/{worker.process.pid}/task").glob("*/children")
    found = "".join(_read(Path(f"/proc/{pid}/environ")) for path in children for pid in _read(path).split())
    assert "PYTHONPATH" in found, "no decoder is running"
    return found


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_no_secret_comes_out(place: Place) -> None:
    (place.folder / "in").mkdir()
    Image.new("RGB", (64, 48), "orange").save(place.folder / "in" / "cat.png")
    with running_worker("w1", place.folder, place.environment) as worker:
        settings = load_settings(Settings, output_uri=place.environment["DG_OUTPUT_URI"], broker_url=place.redis.url)
        client = Client(settings=settings)
        ids = [client.submit(EditJob.model_validate(fields)) for fields in jobs(place)]
        ids += send_plainly(place)
        eventually(lambda: all(record and record.state.is_terminal for record in client.ledger.get_many(ids)))
        eventually(lambda: all(entry.attempts for entry in Outbox(client.ledger).of_jobs(ids)), what="calls")
        eventually(lambda: b"callback" in traces(place.http))
        ends = [client.ledger.get(job_id).result for job_id in ids]
        assert {end.state for end in ends} == {"succeeded", "failed"}, [end.error for end in ends]
        assert place.http.url("/put-200.png") in {end.output for end in ends}

        with running_worker("door", place.folder, place.environment, ready="open at", command=DOOR) as door:
            answers = answers_of_door(door)
            processes = command_lines()

        seen = {
            "results in the ledger": "".join(end.model_dump_json() for end in ends),
            "callbacks": "".join(request.body.decode() for request in place.http.requests("/hook")),
            "traces": traces(place.http).decode(errors="replace"),
            "metrics": page(place.environment["DG_METRICS_PORT"], "/metrics"),
            "readiness": page(place.environment["DG_METRICS_PORT"], "/readyz"),
            "the exporter's metrics": generate_latest(queue_registry(settings)[0]).decode(),
            "health files": "".join(path.read_text() for path in (place.folder / "runtime").glob("*.json")),
            "process list": command_lines() + processes,
            "answers of the door": answers,
            "log of the door": door.log,
            "results": place.command("producer", "results", BATCH),
            "results as JSON": place.command("producer", "results", BATCH, "--json"),
            "gallery": place.gallery(),
            "producer status": place.command("producer", "status", BATCH) + place.command("producer", "watch", BATCH),
            "environment of decoders": environments_of_decoders(worker),
            "workers in Redis": "".join(map(repr, client.registry.workers())),
            "settings": repr(settings),
            "worker check": place.command("worker", "check"),
            "producer callbacks": place.command("producer", "callbacks", "--json"),
            "log": worker.log,
        }
    assert "message_put_aside" in seen["log"]
    assert "edit.failed" in seen["callbacks"]
    assert "input_forbidden" in seen["results"]
    assert "</html>" in seen["gallery"]
    assert "request method=POST path=/v1/images/edits" in seen["log of the door"]
    assert "kontext_jobs" in seen["metrics"] + seen["the exporter's metrics"]
    found = [
        f"{secret} in {place_}: ...{text[max(0, text.index(value) - 200) : text.index(value) + 60]!r}"
        for place_, text in seen.items()
        for secret, value in {**OPERATORS, **SENDERS, **CALLERS}.items()
        if value in text and not (secret in SENDERS_OWN and place_ in OF_THE_SENDER)
    ]
    assert not found, "\n".join(found)


def traces(http: HttpServer) -> bytes:
    """What the collector of traces has received."""
    bodies = [(request.body, request.headers.get("content-encoding")) for request in http.requests(COLLECTED)]
    return b"".join(gzip.decompress(body) if packed == "gzip" else body for body, packed in bodies)
