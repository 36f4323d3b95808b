"""The HTTP door in front of real workers: an answer outlives the worker that was at it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from PIL import Image

from tests.integration.conftest import Service, StartWorker, is_sampling
from tests.producer.http.conftest import png, running_door
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tests.waiting import PATIENCE_SECONDS, eventually


def test_openais_client_gets_its_image_while_the_only_worker_is_killed_and_started_again(
    service: Service, redis_server: RedisServer, start_worker: StartWorker
) -> None:
    roots = {"DG_FILE_ROOTS": str(service.folder / "out")}
    first = start_worker("first", **roots)
    with (
        running_door(redis_server, service.folder) as door,
        openai.OpenAI(base_url=f"{door.url}/v1", api_key="none", timeout=2 * PATIENCE_SECONDS, max_retries=0) as ai,
        ThreadPoolExecutor(1) as callers,
    ):
        asked = callers.submit(
            ai.images.edit,
            image=("cat.png", png(), "image/png"),
            prompt="make it snow",
            size="96x64",
            extra_headers={"Idempotency-Key": "order-5"},
            extra_body={"seed": 7, "timeout": 600},
        )
        eventually(lambda: service.ledger.get_many(["order-5"])[0] and is_sampling(service, "order-5"))
        first.signal(signal.SIGKILL)
        start_worker("second", **roots)
        answer = asked.result(2 * PATIENCE_SECONDS)

    (image,) = answer.data or []
    assert Image.open(io.BytesIO(base64.b64decode(image.b64_json or ""))).size == (96, 64)
    record = service.ledger.get("order-5")
    assert [attempt.reason for attempt in record.history] == ["worker_lost", "succeeded"]


def test_uploads_and_outputs_of_the_door_lie_in_a_bucket(
    service: Service,
    redis_server: RedisServer,
    start_worker: StartWorker,
    s3_server: S3Server,
    s3_bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    where = f"s3://{s3_bucket}/edits"
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    start_worker(DG_BUCKETS=s3_bucket, DG_OUTPUT_URI=where, **s3_server.environment)
    image = png(size=(96, 64))
    key = f"edits/uploads/local/{hashlib.sha256(image).hexdigest()}.png"
    with running_door(redis_server, service.folder, output_uri=where) as door, door.http() as http:
        answers = [
            http.post(
                "/v1/edits",
                files={"image": ("cat.png", image, "image/png")},
                data={
                    "job": json.dumps({"prompt": "make it snow", "params": {"num_inference_steps": 1, "seed": seed}})
                },
                headers={"Prefer": "wait=600"},
            ).json()
            for seed in (7, 8)
        ]
        images = [http.get(f"/v1/edits/{answer['id']}/image") for answer in answers]

    assert [answer["state"] for answer in answers] == ["succeeded", "succeeded"], answers
    assert [answer["result"]["output"] for answer in answers] == [f"{where}/{answer['id']}.png" for answer in answers]
    assert [Image.open(io.BytesIO(answer.content)).size for answer in images] == [(96, 64), (96, 64)]
    assert service.ledger.get(answers[0]["id"]).job.image == (f"s3://{s3_bucket}/{key}",)
    store = s3_server.client()
    stored = store.get_object(Bucket=s3_bucket, Key=key)
    assert (stored["Body"].read(), stored["ContentType"]) == (image, "image/png")
    listed = store.list_objects_v2(Bucket=s3_bucket, Prefix="edits/")["Contents"]
    store.close()
    assert sum(item["Key"].startswith("edits/uploads/") for item in listed) == 1, "the same image is kept once"
