"""Images that stand in a table: small ones travel in their job, others are put where workers read them, each once."""

from __future__ import annotations

import base64
import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from jobs.schema import EditJob
from producer import Client
from producer.errors import TableError
from producer.files import local_path
from producer.table.placing import ImagePlacer
from producer.table.plan import RowDefaults
from producer.table.table import open_table
from tests.producer.conftest import Command, finish
from tests.servers.s3 import S3Server

SMALL = b"\x89PNG" + b"s" * 1000
LARGE = b"\x89PNG" + b"l" * 100_000
JPEG = b"\xff\xd8\xff" + b"j" * 100_000


def write_parquet(path: Path, *images: Any, prompt: str = "snow", **more: Any) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"image": image, "prompt": prompt, **more} for image in images]
    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=4)


def submitted(client: Client, batch: str) -> list[EditJob]:
    return [record.job for record in client.ledger.get_many(list(client.ledger.batch_job_ids(batch))) if record]


def test_small_images_travel_in_their_job_and_large_ones_go_to_the_folder_of_outputs(
    tmp_path: Path, producer: Command, client: Client
) -> None:
    write_parquet(tmp_path / "t.parquet", SMALL, LARGE, JPEG, LARGE)

    ended = producer("submit", "t.parquet", "--output", "pictures")

    assert ended.returncode == 0, ended.stderr
    assert f"3 images of the table go to {(tmp_path / 'pictures/inputs').as_uri()}" in ended.stderr
    small, *large = [uri for job in submitted(client, ended.stdout.strip()) for uri in job.image]
    assert small == f"data:image/png;base64,{base64.b64encode(SMALL).decode()}"
    assert [path.read_bytes() for uri in large if (path := local_path(uri))] == [LARGE, JPEG, LARGE]
    assert [Path(uri).suffix for uri in large] == [".png", ".jpg", ".png"]
    assert len([*(tmp_path / "pictures/inputs").iterdir()]) == 2, "one content is put once"


def test_the_same_table_twice_puts_and_queues_nothing_twice(tmp_path: Path, producer: Command) -> None:
    write_parquet(tmp_path / "t.parquet", LARGE)
    first = producer("submit", "t.parquet", "--images-to", "in")
    (put,) = (tmp_path / "in").iterdir()
    before = put.stat().st_ino

    again = producer("submit", "t.parquet", "--images-to", "in")

    assert again.stdout == first.stdout
    assert "0 queued, 1 already there" in again.stderr
    assert put.stat().st_ino == before


def test_a_dry_run_puts_nothing(tmp_path: Path, producer: Command) -> None:
    write_parquet(tmp_path / "t.parquet", LARGE)

    ended = producer("submit", "t.parquet", "--dry-run", "--images-to", "in", "--json")

    row = next(line for line in map(json.loads, ended.stdout.splitlines()) if line["event"] == "row")
    assert row["job"]["image"][0].startswith((tmp_path / "in").as_uri())
    assert not (tmp_path / "in").exists()


def test_images_go_into_a_bucket(
    tmp_path: Path, producer: Command, client: Client, s3_server: S3Server, s3_bucket: str
) -> None:
    write_parquet(tmp_path / "t.parquet", *[b"\x89PNG" + bytes([number]) * 50_000 for number in range(20)])

    ended = producer("submit", "t.parquet", "--images-to", f"s3://{s3_bucket}/in", **s3_server.environment)

    assert ended.returncode == 0, ended.stderr
    assert f"go to s3://{s3_bucket}/in, which DG_BUCKETS must open" in ended.stderr
    s3 = s3_server.client()
    for number, job in enumerate(submitted(client, ended.stdout.strip())):
        key = job.image[0].removeprefix(f"s3://{s3_bucket}/")
        kept = s3.get_object(Bucket=s3_bucket, Key=key)
        assert (kept["ContentType"], kept["Body"].read()[4:5]) == ("image/png", bytes([number]))
    s3.close()


@pytest.mark.parametrize("place", ["a-file/in", "s3://no-such-bucket/in"])
def test_a_place_that_cannot_be_written_is_one_line_and_queues_nothing(
    tmp_path: Path, producer: Command, client: Client, s3_server: S3Server, place: str
) -> None:
    write_parquet(tmp_path / "t.parquet", LARGE)
    (tmp_path / "a-file").touch()

    ended = producer("submit", "t.parquet", "--images-to", place, **s3_server.environment)

    assert ended.returncode == 2
    assert "error: row 1: its image cannot be put there: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert client.ledger.waiting() == 0


def test_results_of_the_table_know_its_images_wherever_they_were_put(
    tmp_path: Path, producer: Command, client: Client
) -> None:
    write_parquet(tmp_path / "t.parquet", LARGE, edited_image=JPEG)
    batch = producer("submit", "t.parquet", "--images-to", "in").stdout.strip()
    (job,) = submitted(client, batch)
    finish(client, job.id)

    ended = producer("results", batch, "--table", "t.parquet")

    (row,) = csv.DictReader(ended.stdout.splitlines())
    assert row["state"] == "succeeded"
    assert row["image"] == "(100,004 bytes)"
    assert job.metadata == {}, "bytes of other columns stay in the table"


@pytest.mark.parametrize(
    "form", [lambda image: image, lambda image: {"bytes": image, "path": "x.png"}, lambda image: [image]]
)
def test_the_images_of_a_table_are_not_in_memory_together(tmp_path: Path, form: Any) -> None:
    arrow = pytest.importorskip("pyarrow")
    images = [b"\x89PNG" + number.to_bytes(4, "big") * 250_000 for number in range(60)]
    write_parquet(tmp_path / "t.parquet", *map(form, images))
    del images

    peak = 0
    tracemalloc.start()
    with open_table(str(tmp_path / "t.parquet")) as table:
        plan = table.plan((tmp_path / "out").as_uri(), RowDefaults())
        with ImagePlacer.open(plan.images_root) as placer:
            for row in placer.when_placed(table.rows(plan, put=placer.put)):
                assert row.job is not None
                peak = max(peak, arrow.total_allocated_bytes())
    _, python_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len([*(tmp_path / "out/inputs").iterdir()]) == 60
    assert peak + python_peak < 90e6, "60 images of 1 MB, once in arrow and once in Python, are 120 MB"


def test_a_file_that_is_there_already_is_left_as_it_is(tmp_path: Path) -> None:
    uri = (tmp_path / "in/x.png").as_uri()
    with ImagePlacer.open((tmp_path / "in").as_uri()) as placer:
        placer.put(uri, LARGE, "image/png")
        placer.put(uri, LARGE, "image/png")

        assert [*placer.when_placed([])] == []
    assert (tmp_path / "in/x.png").read_bytes() == LARGE


def test_nothing_is_put_outside_the_place(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", SMALL)
    with ImagePlacer.open((tmp_path / "in").as_uri()) as placer, open_table(str(tmp_path / "t.parquet")) as table:
        placer.put((tmp_path / "elsewhere.png").as_uri(), LARGE, "image/png")
        rows = placer.when_placed(table.rows(table.plan("s3://b", RowDefaults())))

        with pytest.raises(TableError, match="cannot be put there"):
            next(rows)
