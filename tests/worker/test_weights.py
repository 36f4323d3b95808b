"""Weights from a hub: a real HTTP server that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.servers.worker import ROOT
from worker.weights import LOCK_FILE

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
def hub() -> Iterator[tuple[str, list[str]]]:
    """The hub's address, and the files that were asked for."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"asked": asked}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def worker(*arguments: str | Path, endpoint: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **environment,
        },
    )


def test_weights_are_fetched_once_checked_and_mended(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    endpoint, asked = hub
    folder = tmp_path / "weights"

    first = worker("fetch-model", "owner/model", folder, endpoint=endpoint, home=tmp_path)
    assert first.returncode == 0, first.stderr
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_ours(path, folder)} == WANTED
    assert (folder / "ae.safetensors").read_bytes() == FILES["ae.safetensors"]
    lock = json.loads((folder / LOCK_FILE).read_text())
    assert (lock["repository"], lock["commit"]) == ("owner/model", COMMIT)

    asked.clear()
    assert worker("fetch-model", "owner/model", folder, endpoint=endpoint, home=tmp_path).returncode == 0
    assert asked == []

    (folder / "ae.safetensors").write_bytes(b"xx" * 1000)  # the same size
    damaged = worker(
        "check", "--verify", endpoint=endpoint, home=tmp_path, DG_FLUX_KONTEXT_MODEL=str(folder), COLUMNS="300"
    )
    assert damaged.returncode == 1
    assert f"{folder}/ae.safetensors differs from the hub's (SHA-256)" in damaged.stdout
    assert worker("fetch-model", "owner/model", folder, endpoint=endpoint, home=tmp_path).returncode == 0
    assert asked == ["ae.safetensors"]
    assert (folder / "ae.safetensors").read_bytes() == FILES["ae.safetensors"]


@pytest.mark.parametrize(
    ("repository", "says"),
    [
        ("owner/gated", "owner/gated asks for its licence to be accepted: do so at https://huggingface.co/owner/gated"),
        ("owner/other", "the hub has no owner/other, or your token may not see it"),
        ("a b", "'a b' is no hub id: expected owner/name"),
    ],
)
def test_what_the_hub_refuses_ends_in_one_line(
    hub: tuple[str, list[str]], tmp_path: Path, repository: str, says: str
) -> None:
    ended = worker("fetch-model", repository, tmp_path / "weights", endpoint=hub[0], home=tmp_path)

    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {says}")
    assert ended.stderr.count("\n") == 1


def test_a_hub_that_is_away_ends_in_one_line(tmp_path: Path) -> None:
    ended = worker("fetch-model", "owner/model", tmp_path, endpoint="http://127.0.0.1:9", home=tmp_path)

    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the hub does not answer (")
    assert ended.stderr.count("\n") == 1


def _is_ours(path: Path, folder: Path) -> bool:
    return path.is_file() and path.name != LOCK_FILE and ".cache" not in path.relative_to(folder).parts
