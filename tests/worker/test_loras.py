"""LoRA files are fetched within the limits of inputs and kept in a bounded folder; a running job's file stays."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from jobs.errors import ErrorCode, RejectJob
from jobs.schema import Lora
from tests.servers.http import HttpServer
from worker import loras
from worker.loras import LoraStore, web_address
from worker.settings import Settings


def content(number: int, values: int = 1000) -> bytes:
    return save({"weight": torch.full((values,), float(number))})


def store(folder: Path, **changes: object) -> LoraStore:
    given = {
        "lora_cache_dir": folder / "cache",
        "file_roots": (folder,),
        "private_hosts": ("127.0.0.1",),
        **changes,
    }
    return LoraStore(Settings(_env_file=None, **given))


def nothing() -> None:
    """Nothing ends the fetch."""


def write(folder: Path, number: int) -> Lora:
    (folder / f"{number}.safetensors").write_bytes(content(number))
    return Lora(uri=(folder / f"{number}.safetensors").as_uri(), scale=0.5)


def test_a_file_is_kept_under_its_hash_and_told_with_its_scale(tmp_path: Path) -> None:
    fetched = store(tmp_path).fetch(write(tmp_path, 1), nothing)

    assert fetched.for_engine.path.read_bytes() == content(1)
    assert fetched.applied.model_dump() == {"sha256": hashlib.sha256(content(1)).hexdigest(), "scale": 0.5}
    assert fetched.for_engine.path.stem == fetched.applied.sha256


def test_a_local_file_that_changed_is_the_new_one(tmp_path: Path) -> None:
    ours, lora = store(tmp_path), write(tmp_path, 1)
    before = ours.fetch(lora, nothing)
    (tmp_path / "1.safetensors").write_bytes(content(2))

    after = ours.fetch(lora, nothing)

    assert after.for_engine.path.read_bytes() == content(2)
    assert before.for_engine.path.read_bytes() == content(1)


def test_the_web_is_asked_again_after_a_while(
    tmp_path: Path, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, lora = store(tmp_path), Lora(uri=http_server.serve_file("/a.safetensors", content(1)))
    first = ours.fetch(lora, nothing)
    http_server.serve_file("/a.safetensors", content(2))

    assert ours.fetch(lora, nothing).applied == first.applied
    monkeypatch.setattr(loras, "FRESH_SECONDS", 0.0)
    assert ours.fetch(lora, nothing).for_engine.path.read_bytes() == content(2)


def test_the_folder_stays_within_its_size_and_keeps_what_runs(tmp_path: Path) -> None:
    size = len(content(1))
    ours = store(tmp_path, lora_cache_bytes=2 * size)
    running = ours.fetch(write(tmp_path, 0), nothing)
    for number in range(1, 6):
        ours.fetch(write(tmp_path, number), nothing)
        gc.collect()
        assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2 * size

    kept = {path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    assert kept == {content(0), content(5)}
    assert running.for_engine.path.exists()


def test_what_a_killed_worker_left_half_written_goes_and_what_another_writes_now_stays(tmp_path: Path) -> None:
    folder, long_ago = tmp_path / "cache", time.time() - 3600
    folder.mkdir()
    left, being_written, new = (folder / f".{name}.safetensors" for name in ("left", "being-written", "new"))
    for path in (left, being_written, new):
        path.write_bytes(b"x" * 10)
    os.utime(left, (long_ago, long_ago))
    os.utime(being_written, (long_ago, long_ago))

    with being_written.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        held = store(tmp_path).fetch(write(tmp_path, 1), nothing)

    assert set(folder.iterdir()) == {being_written, new, held.for_engine.path}


def test_what_is_half_written_counts_for_the_size_of_the_folder(tmp_path: Path) -> None:
    size = len(content(1))
    ours = store(tmp_path, lora_cache_bytes=2 * size)
    ours.fetch(write(tmp_path, 1), nothing)
    gc.collect()
    (tmp_path / "cache" / ".new.safetensors").write_bytes(b"x" * size)

    ours.fetch(write(tmp_path, 2), nothing)

    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) == 2 * size


def test_two_stores_share_a_folder(tmp_path: Path) -> None:
    size = len(content(1))
    one, two = (store(tmp_path, lora_cache_bytes=size) for _ in range(2))
    held = one.fetch(write(tmp_path, 1), nothing)

    two.fetch(write(tmp_path, 2), nothing)

    assert held.for_engine.path.exists()  # the other one's lock keeps it


@pytest.mark.parametrize(
    ("body", "code", "complaint"),
    [
        (b"<!doctype html><title>Sign in</title>", ErrorCode.INVALID_JOB, "LoRA http.*/a is a web page"),
        (content(1)[:-1], ErrorCode.INVALID_JOB, "LoRA http.*/a .*the download stopped at"),
        (content(1, 100_000), ErrorCode.INPUT_TOO_LARGE, "larger than DG_MAX_LORA_BYTES, 100000"),
    ],
)
def test_what_is_no_lora_file_is_refused_and_not_kept(
    tmp_path: Path, http_server: HttpServer, body: bytes, code: ErrorCode, complaint: str
) -> None:
    uri = http_server.serve_file("/a", body)

    with pytest.raises(RejectJob, match=complaint) as error:
        store(tmp_path, max_lora_bytes=100_000).fetch(Lora(uri=uri), nothing)

    assert error.value.code is code
    assert str(tmp_path) not in error.value.message
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").iterdir()) == []


def test_the_rules_for_inputs_apply(tmp_path: Path, http_server: HttpServer) -> None:
    closed = store(tmp_path, private_hosts=(), file_roots=(tmp_path / "open",))
    (tmp_path / "open").mkdir()
    for uri in (http_server.serve_file("/a", content(1)), write(tmp_path, 1).uri, "s3://bucket/a.safetensors"):
        with pytest.raises(RejectJob) as error:
            closed.fetch(Lora(uri=uri), nothing)
        assert error.value.code is ErrorCode.INPUT_FORBIDDEN


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:

    with pytest.raises(RejectJob) as error:
        store(tmp_path).fetch(Lora(uri=(tmp_path / "gone.safetensors").as_uri()), nothing)
    assert error.value.code is ErrorCode.INPUT_NOT_FOUND


def test_hub_addresses_are_those_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)

    assert (
        web_address("hf://me/loras/a b.safetensors") == "https://huggingface.co/me/loras/resolve/main/a%20b.safetensors"
    )
    assert web_address("hf://me/loras@refs-1/x/a.st") == "https://huggingface.co/me/loras/resolve/refs-1/x/a.st"
    assert web_address("s3://b/a.safetensors") == "s3://b/a.safetensors"
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert web_address("hf://me/loras/a.st") == "https://mirror.example/me/loras/resolve/main/a.st"
