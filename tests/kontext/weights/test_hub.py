"""What the Hugging Face hub refuses is told with the way out; the hub is a server of ours that answers as it does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"

ASK = """
import sys
from kontext.errors import CheckpointError
from kontext.weights.layout import find_model
for name in sys.argv[1:]:
    try:
        find_model(name)
    except CheckpointError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """Answers like the hub for a repository whose files are gated, one that is gated whole, and none."""

    def do_GET(self) -> None:
        if "someone/nothing" in self.path:
            self.refuse(401, "RepoNotFound")
        elif "someone/closed" in self.path or "/resolve/" in self.path:
            self.refuse(403, "GatedRepo")
        elif "/tree/" in self.path:
            self.answer(b'[{"type": "file", "oid": "0", "size": 5, "path": "flux1-kontext-dev.safetensors"}]')
        else:
            self.answer(f'{{"id": "someone/gated", "sha": "{COMMIT}", "siblings": []}}'.encode())

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Keep quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_the_hub_refuses_is_told_with_the_way_out(hub: str, tmp_path: Path) -> None:
    # A process of its own: the hub's library reads its variables when it is imported.
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": ""}

    answer = subprocess.run(
        [sys.executable, "-c", ASK, "someone/gated", "someone/closed", "someone/nothing"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )

    gated, closed, nothing = answer.stdout.splitlines()
    for name, line in (("gated", gated), ("closed", closed)):
        assert f"someone/{name} is gated: accept the licence on the model's page https://huggingface.co/some" in line
        assert "log in with `hf auth login`" in line
    assert "the Hugging Face hub does not show someone/nothing: correct the name" in nothing
