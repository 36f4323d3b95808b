"""Weights from a hub: a real HTTP server that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from jobs.settings import load_settings
from tests.servers.worker import ROOT
from worker.check import Finding, Level, check_checksums
from worker.settings import Settings
from worker.weights import LOCK_FILE, FetchError, Lock, differences, fetch_model

COMMIT = "c" * 40
FILES = {
    "flux1-tiny-kontext.safetensors": b"flow" * 50_000,
    "ae.safetensors": b"ae" * 1000,
    "text_encoder/config.json": b"{}",
    "LICENSE.md": b"non-commercial",
    "transformer/diffusion_pytorch_model.safetensors": b"the same in another layout",
}
WANTED = set(FILES) - {"transformer/diffusion_pytorch_model.safetensors"}


class Hub(BaseHTTPRequestHandler):
    """One repository, `owner/model`, and a gated one, `owner/gated`."""

    asked: list[str]

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None: ...

    def _answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.partition(f"/owner/model/resolve/{COMMIT}/")[2]
        if "/gated" in path:
            self._send(403, {"X-Error-Code": "GatedRepo"}, b"", with_body)
        elif path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": file, "size": len(body), **_lfs(file, body)} for file, body in FILES.items()]
            body = json.dumps({"id": "owner/model", "modelId": "owner/model", "sha": COMMIT, "siblings": siblings})
            if "/tree/" in path:
                body = json.dumps(
                    [{"type": "file", "path": file, "size": len(data), "oid": "0" * 40} for file, data in FILES.items()]
                )
            self._send(200, {"Content-Type": "application/json"}, body.encode(), with_body)
        elif name in FILES:
            if with_body:
                self.asked.append(name)
            etag = hashlib.sha256(FILES[name]).hexdigest()
            self._send(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, FILES[name], with_body)
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"", with_body)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)


def _lfs(name: str, body: bytes) -> dict[str, object]:
    if not name.endswith(".safetensors"):
        return {}
    return {"lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the files that were asked for."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"asked": asked}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(repository: str, folder: Path, endpoint: str) -> Lock:
    return fetch_model(repository, folder, None, lambda line: None, endpoint)


def test_weights_are_fetched_once_checked_and_mended(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub

    lock = fetch("owner/model", tmp_path, endpoint)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if _is_ours(path, tmp_path)} == WANTED
    assert (tmp_path / "ae.safetensors").read_bytes() == FILES["ae.safetensors"]
    assert (lock.repository, lock.commit) == ("owner/model", COMMIT)
    assert Lock.read(tmp_path) == lock
    assert differences(lock, tmp_path) == {}

    asked.clear()
    fetch("owner/model", tmp_path, endpoint)
    assert asked == []

    (tmp_path / "ae.safetensors").write_bytes(b"xx" * 1000)  # the same size
    (tmp_path / "LICENSE.md").unlink()
    assert list(differences(lock, tmp_path).values()) == [
        f"{tmp_path}/LICENSE.md is missing",
        f"{tmp_path}/ae.safetensors differs from the hub's (SHA-256)",
    ]
    assert [finding.found for finding in checksums(tmp_path)] == list(differences(lock, tmp_path).values())
    fetch("owner/model", tmp_path, endpoint)
    assert sorted(asked) == ["LICENSE.md", "ae.safetensors"]
    (finding,) = checksums(tmp_path)
    assert (finding.level, finding.found) == (Level.OK, f"4 files of owner/model at {COMMIT[:12]}")


def test_a_folder_that_was_not_fetched_has_nothing_to_compare_with(tmp_path: Path) -> None:
    (finding,) = checksums(tmp_path)

    assert (finding.level, finding.found) == (Level.FAIL, f"no {LOCK_FILE} in {tmp_path} to compare with")
    assert finding.remedy.startswith("worker fetch-model")


@pytest.mark.parametrize(
    ("repository", "says"),
    [
        ("owner/gated", "owner/gated asks for its licence to be accepted: do so at https://huggingface.co/owner/gated"),
        ("owner/other", "the hub has no owner/other, or your token may not see it"),
        ("a b", "'a b' is no hub id: expected owner/name"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    hub: tuple[str, list[str]], tmp_path: Path, repository: str, says: str
) -> None:
    with pytest.raises(FetchError) as raised:
        fetch(repository, tmp_path, hub[0])

    assert str(raised.value).startswith(says)
    assert "\n" not in str(raised.value)


def test_a_hub_that_is_away_ends_the_command_in_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "worker", "fetch-model", "owner/model", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"},
    )

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the hub does not answer (")
    assert ended.stderr.count("\n") == 1


def test_a_full_disk_is_seen_before_anything_is_fetched(
    hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))

    with pytest.raises(FetchError, match=r"has 0\.0 GB free, and 0\.0 GB are to be fetched: make room"):
        fetch("owner/model", tmp_path, hub[0])
    assert hub[1] == []


def checksums(folder: Path) -> list[Finding]:
    return list(check_checksums(load_settings(Settings, flux_kontext_model=str(folder))))


def _is_ours(path: Path, folder: Path) -> bool:
    return path.is_file() and path.name != LOCK_FILE and ".cache" not in path.relative_to(folder).parts
