"""The main job, end to end: a table goes in, real edited pictures come out of the bucket, and every end is reported."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.conftest import SECRET, Service
from tests.servers.http import Answer, HttpServer
from tests.servers.s3 import S3Server
from tests.servers.worker import ROOT, WorkerProcess, running_worker
from tests.waiting import eventually

EXAMPLES = ROOT / "examples"
ROWS = 20
STEPS = 4  # enough for the examples; the judge passes their edits with 4, 8, 20 and 30 steps
HALVED = range(4, ROWS)  # rows at half the examples' size, in a quarter of the time: the model has learnt both
TRANSPORTS = ("s3", "http", "file", "data")


@pytest.fixture
def environment(service: Service, s3_server: S3Server, s3_bucket: str) -> dict[str, str]:
    return {
        **service.environment,
        **s3_server.environment,
        "DG_BUCKETS": s3_bucket,
        "DG_OUTPUT_URI": f"s3://{s3_bucket}/out",
        "DG_FILE_ROOTS": str(EXAMPLES),
        "DG_LEASE_SECONDS": "30",
        "DG_FLUX_KONTEXT_ENGINE": "native",
        "DG_FLUX_KONTEXT_DEVICE": "cpu",
    }


@pytest.fixture
def worker(service: Service, environment: dict[str, str]) -> Iterator[WorkerProcess]:
    with running_worker("w1", service.folder, environment) as process:
        yield process


def examples() -> list[dict[str, str]]:
    with (EXAMPLES / "data.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def reachable(name: str, transport: str, http_server: HttpServer, s3: Any, bucket: str) -> str:
    """Put an example picture where a row can name it; its URI."""
    data = (EXAMPLES / name).read_bytes()
    if transport == "s3":
        s3.put_object(Bucket=bucket, Key=f"in/{name}", Body=data)
        return f"s3://{bucket}/in/{name}"
    if transport == "http":
        return http_server.serve_file(f"/{name}", data, "image/png")
    if transport == "data":
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return (EXAMPLES / name).as_uri()


def write_table(path: Path, hook: str, http_server: HttpServer, s3: Any, bucket: str) -> list[dict[str, str]]:
    """Write `ROWS` rows over all transports; the rows, with the example each came from."""
    chosen = (examples() * 2)[:ROWS]
    for number in HALVED:
        halves = {side: str(int(chosen[number][side]) // 2) for side in ("width", "height")}
        chosen[number] = {**chosen[number], **halves}
    with path.open("w", newline="") as table:
        writer = csv.DictWriter(table, ["note", "image", "prompt", "seed", "width", "height", "callback_url"])
        writer.writeheader()
        for number, row in enumerate(chosen):
            uri = reachable(row["image"], TRANSPORTS[number % 4], http_server, s3, bucket)
            writer.writerow({**row, "image": uri, "note": f"row {number}", "callback_url": hook})
    return chosen


def producer(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "producer", *words]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


@pytest.mark.long
def test_a_table_of_twenty_rows_gives_twenty_right_pictures_and_twenty_verified_callbacks(
    service: Service,
    environment: dict[str, str],
    worker: WorkerProcess,
    s3_server: S3Server,
    s3_bucket: str,
    http_server: HttpServer,
) -> None:
    hook = http_server.answer("/hook", Answer(204))
    s3 = s3_server.client()
    table, results = service.folder / "data.csv", service.folder / "results.csv"
    rows = write_table(table, hook, http_server, s3, s3_bucket)

    run = producer(
        environment,
        *("submit", str(table), "--batch", "spring", "--num-inference-steps", str(STEPS)),
        *("--wait", "--results", str(results), "--json"),
    )

    assert run.returncode == 0, run.stderr
    with results.open(newline="") as file:
        reported = list(csv.DictReader(file))
    assert [row["note"] for row in reported] == [f"row {number}" for number in range(ROWS)]
    assert {row["state"] for row in reported} == {"succeeded"}
    assert {row["attempts"] for row in reported} == {"1"}
    for row, result in zip(rows, reported, strict=True):
        bucket, _, key = result["output"].removeprefix("s3://").partition("/")
        stored = s3.get_object(Bucket=bucket, Key=key)
        assert stored["ContentType"] == "image/png"
        check_edit(row, Image.open(io.BytesIO(stored["Body"].read())))
    eventually(lambda: len(http_server.requests("/hook")) >= ROWS)
    events = [request.verified(SECRET) for request in http_server.requests("/hook")]
    assert {event["type"] for event in events} == {"edit.succeeded"}
    assert {event["data"]["output"] for event in events} == {row["output"] for row in reported}
    assert len({request.headers["webhook-id"] for request in http_server.requests("/hook")}) == ROWS
    s3.close()

    again = producer(
        environment, "submit", str(table), "--batch", "spring", "--num-inference-steps", str(STEPS), "--json"
    )
    assert again.returncode == 0
    assert sum(service.ledger.batch_counts("spring").values()) == ROWS, "the same table twice queues nothing twice"


def check_edit(row: dict[str, str], edited: Image.Image) -> None:
    """The picture is nearer to what was asked for than to what went in, and marked as made by a model."""
    size = (int(row["width"]), int(row["height"]))
    asked = Image.open(EXAMPLES / "expected" / row["image"]).convert("RGB").resize(size)
    before = Image.open(EXAMPLES / row["image"]).convert("RGB").resize(size)

    assert edited.size == size
    assert edited.getexif()[305].startswith("AI generated")
    assert difference(edited.convert("RGB"), asked) < 16, row["prompt"]
    assert difference(edited.convert("RGB"), asked) < difference(edited.convert("RGB"), before), row["prompt"]


def test_a_jobs_result_says_how_it_was_made(
    service: Service, environment: dict[str, str], worker: WorkerProcess
) -> None:
    long_prompt = "make the background black " * 60
    image = (EXAMPLES / "04_background.png").as_uri()
    output = f"{environment['DG_OUTPUT_URI']}/a.png"
    service.submit("a", image=image, prompt=long_prompt, output=output, params={"num_inference_steps": 2})

    result = service.ended("a").result

    assert result.engine is not None
    assert (result.engine.name, result.engine.model) == ("native", "flux1-tiny-kontext")
    assert result.engine.fingerprint.startswith("sha256:")
    assert result.seed is not None
    assert "cut" in " ".join(result.warnings)
    assert json.loads(result.model_dump_json())["timings"]["sample"] > 0
