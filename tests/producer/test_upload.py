"""`producer submit --upload`: local inputs go into a bucket, each once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from producer import Client, EditJob
from tests.producer.conftest import Command, finish
from tests.servers.s3 import S3Server


def test_local_inputs_are_put_where_workers_read_them(
    folder: Path, producer: Command, client: Client, s3_server: S3Server, s3_bucket: str
) -> None:
    (folder / "more.csv").write_text("image,prompt\ncat.png,snow\ncat.png,rain\nhttps://example.org/a.png,hail\n")
    where = f"s3://{s3_bucket}/in/"

    first = producer("submit", "data.csv", "--upload", where, **s3_server.environment)
    second = producer("submit", "more.csv", "--upload", where, **s3_server.environment)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "2 inputs uploaded, 0 there before" in first.stderr
    assert "0 inputs uploaded, 1 there before" in second.stderr, "by its content, though another table names it"
    images = [client.get(job_id).job.image[0] for job_id in client.ledger.batch_job_ids(second.stdout.strip())]
    assert images[0] == images[1]
    assert images[0].startswith(where)
    assert images[0].endswith(".png")
    assert images[2] == "https://example.org/a.png"
    key = images[0].removeprefix(f"s3://{s3_bucket}/")
    stored = s3_server.client().get_object(Bucket=s3_bucket, Key=key)
    assert (stored["Body"].read(), stored["ContentType"]) == (b"cat", "image/png")


def test_local_loras_are_put_there_too(
    folder: Path, producer: Command, client: Client, s3_server: S3Server, s3_bucket: str
) -> None:
    (folder / "snow.safetensors").write_bytes(b"lora")
    where = f"s3://{s3_bucket}/in"

    ended = producer(
        "submit", "data.csv", "--loras", "snow.safetensors@0.5", "--upload", where, **s3_server.environment
    )

    assert "3 inputs uploaded, 0 there before" in ended.stderr
    for job_id in client.ledger.batch_job_ids(ended.stdout.strip()):
        (lora,) = client.get(job_id).job.params.loras
        assert (lora.uri.startswith(f"{where}/"), lora.uri.endswith(".safetensors"), lora.scale) == (True, True, 0.5)


def test_results_of_the_table_know_its_uploaded_inputs(
    folder: Path, producer: Command, client: Client, s3_server: S3Server, s3_bucket: str
) -> None:
    batch = producer("submit", "data.csv", "--upload", f"s3://{s3_bucket}", **s3_server.environment).stdout.strip()
    for job_id in client.ledger.batch_job_ids(batch):
        finish(client, job_id)

    lines = producer("results", batch, "--table", "data.csv", "--json").stdout.splitlines()

    assert [json.loads(line)["result"]["state"] for line in lines] == ["succeeded", "succeeded"]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("/some/folder", "error: --upload /some/folder: expected s3://bucket/prefix"),
        ("s3://no-such-bucket/in", "cannot be uploaded to bucket no-such-bucket ("),
    ],
)
def test_an_upload_that_cannot_be_is_one_line(
    folder: Path, producer: Command, client: Client, s3_server: S3Server, target: str, said: str
) -> None:
    ended = producer("submit", "data.csv", "--upload", target, **s3_server.environment)

    assert ended.returncode == 2
    assert said in ended.stderr
    assert client.ledger.waiting() == 0


def test_a_job_carries_a_local_image(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")

    job = EditJob.from_file(tmp_path / "cat.png", "make it snow", batch="spring")

    assert job.image == ("data:image/png;base64,Y2F0",)
    assert (job.prompt, job.batch) == ("make it snow", "spring")


def test_a_local_image_that_is_too_large_for_a_job_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "cat.png").open("wb") as file:
        file.truncate(8 * 2**20 + 1)

    with pytest.raises(ValueError, match="larger than 8,388,608 bytes; give a URI"):
        EditJob.from_file(tmp_path / "cat.png", "make it snow")
