"""One storage serves every kind of URI, and shows none of their secrets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, RejectJob
from jobs.settings import load_settings
from storage import Storage
from storage.settings import StorageSettings
from storage.uris import show_uri
from tests.servers.http import HttpServer
from tests.servers.s3 import S3Server

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def storage(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    storage = Storage(
        load_settings(StorageSettings, file_roots=(tmp_path,), buckets=("*",), private_hosts=("127.0.0.1",))
    )
    yield storage
    storage.close()


def test_inputs_of_every_kind_are_read(
    storage: Storage, tmp_path: Path, s3_bucket: str, http_server: HttpServer
) -> None:
    storage.publish(f"file://{tmp_path}/cat.png", b"a cat", "image/png")
    storage.publish(f"s3://{s3_bucket}/cat.png", b"a cat", "image/png")
    uris = [
        f"file://{tmp_path}/cat.png",
        f"s3://{s3_bucket}/cat.png",
        http_server.serve_file("/cat.png", b"a cat"),
        "data:,a%20cat",
    ]

    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(storage.read, uris * 8)) == {b"a cat"}


@pytest.mark.parametrize("uri", ["data:,x", "ftp://host/out.png", "out.png"])
def test_outputs_go_to_files_buckets_and_links_only(uri: str, storage: Storage) -> None:
    with pytest.raises(RejectJob, match="outputs go to s3, file, https or http URIs") as publishing:
        storage.publish(uri, b"picture", "image/png")
    with pytest.raises(RejectJob, match="outputs go to s3, file, https or http URIs"):
        storage.check_output(uri)

    assert publishing.value.code is ErrorCode.OUTPUT_FORBIDDEN


@pytest.mark.parametrize("uri", ["ftp://host/cat.png", "cat.png", ""])
def test_inputs_of_other_kinds_are_refused(uri: str, storage: Storage) -> None:
    with pytest.raises(RejectJob, match="inputs come from s3, https, http, file or data URIs") as error:
        storage.read(uri)

    assert error.value.code is ErrorCode.INPUT_FORBIDDEN


def test_a_closed_storage_opens_again_when_it_is_used(storage: Storage, s3_bucket: str) -> None:
    storage.check_output(f"s3://{s3_bucket}/cat.png")
    storage.close()
    storage.close()

    storage.check_output(f"s3://{s3_bucket}/cat.png")


def test_nothing_is_loaded_before_it_is_needed() -> None:
    program = "import storage, storage.addresses, storage.signing, sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)

    assert {"boto3", "botocore", "httpx2", "httpcore2", "httpx"}.isdisjoint(ended.stdout.split())


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://cats/in/a b?.png", "s3://cats/in/a b?.png"),
        ("file:///srv/cat%20.png", "file:///srv/cat%20.png"),
        ("https://me:hunter2@host:8443/cat.png?X-Amz-Signature=5ec2e7#top", "https://host:8443/cat.png?..."),
        ("https://host/cat.png", "https://host/cat.png"),
        ("https://me:hunter2@[::1/cat.png", "https://[::1/cat.png"),
        ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUg", "data:image/png;base64,iVBORw0KGg... (44 characters)"),
        ("file:///srv/two\nlines\x1b[31m", r"file:///srv/two\nlines\x1b[31m"),
        ("s3://cats/" + "x" * 1000, "s3://cats/" + "x" * 187 + "..."),
    ],
)
def test_uris_are_shown_on_one_line_without_secrets(uri: str, shown: str) -> None:
    assert show_uri(uri) == shown
