"""Downloaded inputs are kept in a folder, and only whole ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, RejectJob
from jobs.settings import load_settings
from storage import Storage
from storage.cache import Cached
from storage.settings import StorageSettings
from storage.store import Source
from tests.requirements import require
from tests.servers.http import Answer, HttpServer


class Counting(Source):
    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)

    def read(self, uri: str) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_input_is_downloaded_once(http_server: HttpServer, tmp_path: Path) -> None:
    url = http_server.answer("/cat.png", Answer(body=b"cat"))
    storage = Storage(load_settings(StorageSettings, private_hosts=("127.0.0.1",), input_cache_dir=tmp_path / "new"))

    assert [storage.read(url), storage.read(url), storage.read(f"{url}?v=2")] == [b"cat"] * 3

    assert len(http_server.requests("/cat.png")) == 2, "the query is part of the address"
    kept = list((tmp_path / "new").iterdir())
    assert [path.stat().st_mode & 0o777 for path in kept] == [0o600, 0o600]
    storage.close()


def test_a_process_that_is_killed_while_it_keeps_an_input_leaves_nothing(tmp_path: Path) -> None:
    require(hasattr(os, "O_TMPFILE"), "files without a name are Linux's")
    program = f"""
import os, signal
from pathlib import Path
from storage import cache, files
files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
class Cat:
    def read(self, uri): return b"cat"
cache.Cached(Cat(), Path({str(tmp_path)!r})).read("https://example.com/cat.png")
"""

    ended = subprocess.run([sys.executable, "-c", program], check=False)

    assert ended.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    cached = Cached(Counting(RejectJob(ErrorCode.INPUT_NOT_FOUND, "gone"), b"cat"), tmp_path)

    with pytest.raises(RejectJob):
        cached.read("https://example.com/cat.png")

    assert cached.read("https://example.com/cat.png") == b"cat"


def test_a_folder_that_cannot_be_used_costs_only_the_download(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cached = Cached(Counting(b"cat", b"cat"), tmp_path / "file/below")

    assert [cached.read("https://example.com/cat.png") for _ in range(2)] == [b"cat"] * 2
