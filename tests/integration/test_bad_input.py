"""Bad input gives one clear line, or a failed job with its code and callback; the worker stays up, nothing is lost."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from jobs.errors import ErrorCode
from jobs.schema import JobState
from tests.integration.conftest import SECRET, Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer, free_port
from tests.servers.s3 import S3Server
from tests.servers.worker import ROOT
from tests.waiting import eventually


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 80).save(buffer, "JPEG")
    return buffer.getvalue()


BAD_INPUTS: dict[str, tuple[Callable[[HttpServer], str], ErrorCode, str]] = {
    "unreachable host": (
        lambda server: f"http://127.0.0.1:{free_port()}/cat.png",
        ErrorCode.INPUT_UNREACHABLE,
        "127.0.0.1",
    ),
    "no such page": (lambda server: server.url("/none.png"), ErrorCode.INPUT_NOT_FOUND, "404"),
    "web page": (
        lambda server: server.answer("/page", Answer.html()),
        ErrorCode.INPUT_NOT_AN_IMAGE,
        "start like a web page",
    ),
    "truncated JPEG": (
        lambda server: server.serve_file("/cut.jpg", jpeg()[:-2000]),
        ErrorCode.INPUT_NOT_AN_IMAGE,
        "cut short",
    ),
}
"""Every other kind, with its answer, is in `tests/hostile`."""


def test_an_input_that_cannot_be_used_fails_its_job_with_code_message_and_callback(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(204))
    worker = start_worker(DG_OUTAGE_SECONDS="0")
    for number, (make_uri, _, _) in enumerate(BAD_INPUTS.values()):
        uri = make_uri(http_server)
        service.submit(f"bad-{number}", image=uri, callback={"url": hook}, params={"num_inference_steps": 1})
    service.submit("good", params={"num_inference_steps": 1})

    for number, (name, (_, code, words)) in enumerate(BAD_INPUTS.items()):
        error = service.ended(f"bad-{number}").result.error
        assert error is not None, name
        assert error.code is code, f"{name}: {error}"
        assert words in error.message, f"{name}: {error}"
        assert "\n" not in error.message, name
    assert service.ended("good").state is JobState.SUCCEEDED
    assert worker.process.poll() is None
    eventually(lambda: len(http_server.requests("/hook")) == len(BAD_INPUTS))
    events = [request.verified(SECRET) for request in http_server.requests("/hook")]
    assert {event["type"] for event in events} == {"edit.failed"}
    assert all(event["data"]["error"]["code"] for event in events)


def test_what_was_forgiven_in_an_input_is_in_the_result(
    service: Service, start_worker: StartWorker, http_server: HttpServer
) -> None:
    start_worker()
    cut = http_server.serve_file("/cut.jpg", jpeg()[:-2])
    service.submit("cut", image=cut, params={"num_inference_steps": 1})

    result = service.ended("cut").result

    assert f"{cut}: the JPEG picture lacks its end; what there is of it was used" in result.warnings


@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        ("file:///proc/nowhere/a.png", ErrorCode.OUTPUT_NOT_FOUND, "/proc/nowhere"),
        ("s3://someone-elses/a.png", ErrorCode.OUTPUT_FORBIDDEN, "DG_BUCKETS"),
        ("s3://no-such-bucket/a.png", ErrorCode.OUTPUT_NOT_FOUND, "no-such-bucket"),
    ],
)
def test_an_output_that_cannot_be_written_fails_before_the_gpu_is_used(
    service: Service, start_worker: StartWorker, s3_server: S3Server, output: str, code: ErrorCode, words: str
) -> None:
    roots = f"{service.folder / 'in'}:/proc"
    start_worker(DG_BUCKETS="no-such-bucket", DG_MAX_ATTEMPTS="1", DG_FILE_ROOTS=roots, **s3_server.environment)
    service.submit("a", output=output)

    result = service.ended("a").result

    assert result.error is not None
    assert (result.error.code, words in result.error.message) == (code, True), result.error
    assert result.timings.sample is None


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("words", "environment", "code", "said"),
    [
        (["producer", "submit", "nowhere.csv"], {}, 2, "nowhere.csv"),
        (["producer", "submit", "examples/data.csv"], {"DG_BROKER_URL": "redis://127.0.0.1:1/0"}, 3, "127.0.0.1:1"),
        (["worker", "run"], {"DG_FLUX_KONTEXT_MODEL": "/no/such/model"}, 4, "/no/such/model"),
        (["worker", "run"], {"DG_FLUX_KONTEXT_ENGINE": "nativ"}, 4, "expected native, official, standin or module"),
        (["worker", "run"], {"DG_FLUX_KONTEXT_OFFLOAD": "ja"}, 2, "DG_FLUX_KONTEXT_OFFLOAD='ja': expected auto, true"),
        (["worker", "health"], {"DG_RUNTIME_DIR": "/no/such/folder"}, 1, "no worker is running"),
    ],
)
def test_a_command_that_cannot_work_says_so_in_one_line(
    words: list[str], environment: dict[str, str], code: int, said: str, redis_server: RedisServer
) -> None:
    ended = run({"DG_BROKER_URL": redis_server.url, **environment}, *words)

    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len([line for line in ended.stderr.splitlines() if said in line]) == 1


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("image,words\ncat.png,make it snow\n", "prompt"),
        ("prompt\nmake it snow\n", "image"),
        ("image,prompt\nCAT,\n", "prompt"),
        ("image,prompt,height\nCAT,make it snow,100000\n", "100000"),
        ("image,prompt,num_inference_steps\nCAT,make it snow,0\n", "num_inference_steps"),
        ("image,prompt\nno-such.png,make it snow\n", "no-such.png"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_row_column_value_and_remedy(
    service: Service, tmp_path: Path, table: str, said: str
) -> None:
    service.picture()
    path = tmp_path / "in" / "data.csv"
    path.write_text(table.replace("CAT", "cat.png"))

    ended = run(service.environment, "producer", "submit", str(path))

    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert service.ledger.queue_counts()["queued"] == 0


def test_a_worker_that_starts_without_redis_waits_for_it_and_then_works(
    service: Service, start_worker: StartWorker, redis_server: RedisServer
) -> None:
    redis_server.kill()
    worker = start_worker(ready="redis_away")

    redis_server.start()

    worker.wait_until_logged("worker_takes_jobs")
    service.submit("a", params={"num_inference_steps": 1})
    assert service.ended("a").state is JobState.SUCCEEDED
