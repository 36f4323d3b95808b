"""Inputs on the web and in buckets: when they were last changed, and rows that are done again for it."""

from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path

import pytest

from jobs.schema import EditJob
from producer.embedded.remote_changes import last_changes, remote_inputs
from tests.producer.conftest import Command
from tests.servers.http import Answer, HttpServer
from tests.servers.s3 import S3Server

NOON = 1_790_000_000


def dated(seconds: float) -> Answer:
    return Answer(headers={"Last-Modified": formatdate(seconds, usegmt=True)})


def test_inputs_and_loras_elsewhere_are_those_that_are_asked_for() -> None:
    job = EditJob.model_validate(
        {
            "image": ["https://a.example/cat.png", "file:///cat.png"],
            "prompt": "snow",
            "params": {"loras": [{"uri": "s3://styles/ink.safetensors"}]},
        }
    )

    assert remote_inputs(job) == ["https://a.example/cat.png", "s3://styles/ink.safetensors"]


def test_each_server_tells_its_date_and_whoever_does_not_is_left_out(http_server: HttpServer) -> None:
    there = http_server.answer("/cat.png", dated(NOON))
    moved = http_server.answer("/old.png", Answer.redirect("/cat.png"))
    silent = [
        http_server.answer("/undated.png", Answer()),
        http_server.answer("/strange.png", Answer(headers={"Last-Modified": "yesterday"})),
        http_server.answer("/broken.png", Answer(dropped=True)),
        http_server.url("/missing.png"),
        "http://127.0.0.1:1/cat.png",
        "http://a host/cat.png",
    ]

    assert last_changes([there, moved, *silent]) == {there: NOON, moved: NOON}
    assert [request.method for request in http_server.requests("/undated.png")] == ["HEAD"]


def test_a_bucket_tells_the_date_of_an_object(
    s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    client = s3_server.client()
    client.put_object(Bucket=s3_bucket, Key="cat.png", Body=b"cat")
    put_at = client.head_object(Bucket=s3_bucket, Key="cat.png")["LastModified"].timestamp()
    client.close()
    there = f"s3://{s3_bucket}/cat.png"

    assert last_changes([there, f"s3://{s3_bucket}/missing.png"]) == {there: put_at}


def test_rows_whose_inputs_have_changed_on_the_web_are_done_again(
    folder: Path, producer: Command, http_server: HttpServer
) -> None:
    # The stand-in reads the path of an address from the disk.
    cat, dog = (str(folder / name) for name in ("cat.png", "dog.png"))
    addresses = [http_server.answer(path, dated(NOON)) for path in (cat, dog)]
    undated = http_server.answer(f"{folder}/../{folder.name}/cat.png", Answer())
    rows = [f"{uri},snow\n" for uri in (*addresses, undated)]
    (folder / "data.csv").write_text("image,prompt\n" + "".join(rows))
    producer("run", "data.csv", "--output-dir", "out")
    for number in range(3):
        os.utime(folder / "out" / f"{number:06}.png", (NOON + 60, NOON + 60))
    http_server.answer(dog, dated(NOON + 120))

    unasked = producer("run", "data.csv", "--output-dir", "out")
    asked = producer("run", "data.csv", "--output-dir", "out", "--check-inputs")

    assert "3 rows done before" in unasked.stderr
    assert "2 rows done before" in asked.stderr
    assert "1 row done again: an input is newer than the output made of it" in asked.stderr
    assert "1 input whose server tells no date of its last change: taken as unchanged" in asked.stderr
