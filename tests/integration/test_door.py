"""The HTTP door in front of real workers: an answer outlives the worker that was at it."""

from __future__ import annotations

import base64
import io
import signal
from concurrent.futures import ThreadPoolExecutor

import openai
from PIL import Image

from tests.integration.conftest import Service, StartWorker, is_sampling
from tests.producer.http.conftest import png, running_door
from tests.servers.redis import RedisServer
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
