"""`producer download`: outputs come into a folder, each whole and once; `edit --remote -o FILE` brings its own."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from jobs.ledger import Claim
from jobs.schema import JobState, Outcome
from producer import Client
from producer.download import TRIES, Downloader, link_seconds, names_below
from producer.files import local_path
from tests.producer.conftest import Command, finish, make_job
from tests.servers.s3 import S3Server


@pytest.fixture
def bucket(client: Client, s3_server: S3Server, s3_bucket: str) -> str:
    """A bucket with the outputs of the batch `spring`: two in one folder, one in another, and a fourth to come."""
    store = s3_server.client()
    for number, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        uri = f"s3://{s3_bucket}/out/{name}"
        client.submit(make_job(f"job-{number}", batch="spring", output=uri))
        if number < 3:
            store.put_object(Bucket=s3_bucket, Key=f"out/{name}", Body=f"image {number}".encode())
            finish(client, f"job-{number}")
    store.close()
    return s3_bucket


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_outputs_in_a_bucket_are_fetched_once_and_again_when_they_have_changed(
    tmp_path: Path, producer: Command, client: Client, s3_server: S3Server, bucket: str
) -> None:
    first = producer("download", "spring", "got", **s3_server.environment)

    assert (first.returncode, first.stdout) == (1, "got\n"), first.stderr
    assert "3 fetched, 0 there before" in first.stderr
    assert "1 job not done yet: the same command again fetches what they make" in first.stderr
    assert files_in(tmp_path / "got") == {"a/0.png": b"image 0", "a/1.png": b"image 1", "b/0.png": b"image 2"}

    store = s3_server.client()
    store.put_object(Bucket=bucket, Key="out/a/0.png", Body=b"another image")
    store.put_object(Bucket=bucket, Key="out/b/1.png", Body=b"image 3")
    store.close()
    finish(client, "job-3")
    (tmp_path / "got" / "a" / "1.png").unlink()
    second = producer("download", "spring", "got", **s3_server.environment)

    assert second.returncode == 0
    assert "3 fetched, 1 there before" in second.stderr
    assert files_in(tmp_path / "got")["a/0.png"] == b"another image"
    assert len(files_in(tmp_path / "got")) == 4


def test_what_is_not_there_any_more_is_told_and_the_rest_is_fetched(
    tmp_path: Path, producer: Command, client: Client, s3_server: S3Server, bucket: str
) -> None:
    client.cancel("job-3")
    store = s3_server.client()
    store.delete_object(Bucket=bucket, Key="out/a/1.png")
    store.close()

    ended = producer("download", "spring", "--json", **s3_server.environment)

    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["problem"] for line in lines[:-1]] == [None, "is not there any more", None]
    assert lines[-1] == {"event": "downloaded", "fetched": 2, "there_before": 0, "missing": 1, "open": 0}
    assert set(files_in(tmp_path / "spring")) == {"a/0.png", "b/0.png"}


def test_links_can_be_read_without_a_key(producer: Command, s3_server: S3Server, bucket: str) -> None:
    ended = producer("download", "spring", "--links", "24h", **s3_server.environment)
    (as_json,) = producer("download", "job-2", "--links", "1h", "--json", **s3_server.environment).stdout.splitlines()

    links = ended.stdout.splitlines()
    assert [httpx2.get(link, trust_env=False).content for link in links] == [b"image 0", b"image 1", b"image 2"]
    assert json.loads(as_json)["job_id"] == "job-2"
    assert httpx2.get(json.loads(as_json)["link"], trust_env=False).content == b"image 2"


def test_files_are_copied_where_this_machine_has_them(tmp_path: Path, producer: Command, client: Client) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "a b.png").write_bytes(b"image")
    for name in ("a b.png", "elsewhere.png"):
        client.submit(make_job(name[0], batch="spring", output=(made / name).as_uri()))
        finish(client, name[0])

    ended = producer("download", "spring", "got")
    in_place = producer("download", "a", made)

    assert ended.returncode == 1
    assert "lies on the worker's machine" in ended.stderr
    assert "let workers write to a bucket or a shared folder" in ended.stderr
    assert files_in(tmp_path / "got") == {"a b.png": b"image"}
    assert (in_place.returncode, files_in(made)) == (0, {"a b.png": b"image"})
    assert "0 fetched, 1 there before" in in_place.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("download", "nowhere"), "no batch and no job 'nowhere'"),
        (("download", "spring", "--links", "soon"), "--links soon: expected a time from 1s to 7d, such as 24h"),
        (("download", "spring", "got", "--links", "24h"), "leave DIR out"),
    ],
)
def test_what_cannot_be_meant_is_told(producer: Command, arguments: tuple[str, ...], said: str) -> None:
    ended = producer(*arguments)

    assert ended.returncode == 2
    assert said in " ".join(ended.stderr.replace("│", " ").split())
    assert "Traceback" not in ended.stderr


def test_spans_of_links() -> None:
    assert [link_seconds(text) for text in ("90s", "30m", "24H", "7d")] == [90, 1800, 86400, 604_800]


@pytest.mark.parametrize(
    ("uris", "names"),
    [
        (["s3://b/out/x/0.png"], ["0.png"]),
        (["s3://b/out/x/0.png", "s3://b/out/x/1.png"], ["0.png", "1.png"]),
        (["s3://b/out/x/0.png", "s3://b/out/y/0.png"], ["x/0.png", "y/0.png"]),
        (["s3://b/out/0.png", "s3://b/out/y/0.png"], ["0.png", "y/0.png"]),
        (["s3://b/0.png", "s3://c/0.png"], ["b/0.png", "c/0.png"]),
        (["s3://b/0.png", "file:///b/0.png"], ["s3/b/0.png", "file/_/b/0.png"]),
        (["s3://b/../../etc/0.png", "s3://b/x//0.png"], ["_../_../etc/0.png", "x/_/0.png"]),
        (["file:///out/a%20b.png"], ["a b.png"]),
        ([], []),
    ],
)
def test_names_tell_outputs_apart_and_stay_in_the_folder(uris: list[str], names: list[str]) -> None:
    assert list(map(str, names_below(uris).values())) == names


class Body(io.BytesIO):
    def iter_chunks(self, size: int) -> Any:
        return iter(lambda: self.read(size), b"")


class Store:
    """A store whose answers for one object are given, one after the other."""

    def __init__(self, *bodies: bytes, content: bytes = b"image") -> None:
        self._bodies = list(bodies)
        self._facts = {
            "ContentLength": len(content),
            "ETag": f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"',
            "LastModified": datetime.now(UTC),
        }

    def head_object(self, **_: str) -> dict[str, Any]:
        return self._facts

    def get_object(self, **_: str) -> dict[str, Any]:
        return {**self._facts, "Body": Body(self._bodies.pop(0))}


def test_bytes_that_are_not_those_of_the_store_are_fetched_again_and_never_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*bodies: bytes) -> str:
        downloader = Downloader()
        monkeypatch.setattr(downloader, "_shared_client", Store(*bodies), raising=False)
        return downloader.fetch("s3://b/x.png", tmp_path / "x.png").problem

    assert "its checksum is another" in fetched(*[b"imagE"] * TRIES)
    assert "3 of 5 bytes" in fetched(*[b"ima"] * TRIES)
    assert files_in(tmp_path) == {}
    assert fetched(b"ima", b"imagE", b"image") == ""
    assert files_in(tmp_path) == {"x.png": b"image"}


def test_a_bucket_that_refuses_ends_the_command_with_one_line(
    producer: Command, s3_server: S3Server, bucket: str
) -> None:
    ended = producer("download", "spring", "got", **{**s3_server.environment, "AWS_SECRET_ACCESS_KEY": "wrong"})

    assert ended.returncode == 2
    assert "cannot be fetched" in ended.stderr
    assert "check AWS_* and the bucket" in ended.stderr


@pytest.fixture
def worker(client: Client) -> Any:
    """A worker that writes each output as a file where the job names it."""
    ending = threading.Event()

    def work() -> None:
        while not ending.wait(0.01):
            claim = client.ledger.claim_best("w1", 60)
            if isinstance(claim, Claim):
                path = local_path(claim.job.output or "")
                assert path is not None
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{claim.job.params.output_format} {claim.job.params.seed}".encode())
                done = Outcome(output=claim.job.output, width=16, height=16)
                client.ledger.finish(claim.job_id, claim.token, JobState.SUCCEEDED, done)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    ending.set()
    thread.join()


def test_a_remote_edit_is_fetched_to_where_it_is_wanted(folder: Path, producer: Command, worker: None) -> None:
    out = (folder / "theirs").as_uri()

    one = producer("edit", "cat.png", "snow", "--remote", "-o", "snow.jpg", "--seed", "7", DG_OUTPUT_URI=out)
    several = producer("edit", "cat.png", "snow", "--remote", "-o", "many/", "--seed", "1..2", DG_OUTPUT_URI=out)

    assert (one.returncode, one.stdout) == (0, f"{folder.resolve() / 'snow.jpg'}\n"), one.stderr
    assert (folder / "snow.jpg").read_bytes() == b"jpeg 7"
    assert several.returncode == 0
    assert files_in(folder / "many") == {"cat-edited-1.png": b"png 1", "cat-edited-2.png": b"png 2"}
    assert len(files_in(folder / "theirs")) == 3
