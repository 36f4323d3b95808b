"""What meets bytes of strangers, each with the only errors that it may raise."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.errors import RejectJob
from jobs.schema import parse_job, salvage_job
from kontext import ImageError, decode_image
from kontext.errors import CheckpointError
from kontext.weights.header import read_header
from producer.errors import TableError
from producer.table.plan import RowDefaults
from producer.table.table import open_table
from worker.intake import NotOurs, check_message

CORPUS = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Target:
    """Takes any bytes and returns, or raises what is a finding; its seeds are the files of that name in the corpus."""

    name: str
    take: Callable[[bytes], None]

    def seeds(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(CORPUS.glob(f"{self.name}.*"))]


def take_message(data: bytes) -> None:
    with suppress(NotOurs):
        check_message(data)


def take_job(data: bytes) -> None:
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):  # no message has such a body
        return
    salvage_job(raw, "one").model_dump_json()
    with suppress(RejectJob):
        parse_job(raw).completed("s3://bucket/out").model_dump_json()


def take_image(data: bytes) -> None:
    with suppress(ImageError):
        assert decode_image(data, max_pixels=1_000_000).mode == "RGB"


def take_header(data: bytes) -> None:
    with _file("a.safetensors", data) as path, suppress(CheckpointError):
        read_header(path)


def take_csv(data: bytes) -> None:
    _read_table("t.csv", data)


def take_jsonl(data: bytes) -> None:
    _read_table("t.jsonl", data)


def take_parquet(data: bytes) -> None:
    _read_table("t.parquet", data)


def _read_table(name: str, data: bytes) -> None:
    with _file(name, data) as path, suppress(TableError), open_table(str(path)) as table:
        for row in table.rows(table.plan("s3://bucket", RowDefaults(), "batch")):
            assert all("\n" not in str(problem) for problem in row.problems)


@contextmanager
def _file(name: str, data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(data)
        yield path


TARGETS = {
    name: Target(name, take)
    for name, take in {
        "message": take_message,
        "job": take_job,
        "image": take_image,
        "header": take_header,
        "csv": take_csv,
        "jsonl": take_jsonl,
        "parquet": take_parquet,
    }.items()
}
