"""A real S3 server that judges access: OpenStack Swift with its S3 door.

It refuses wrong secrets, tampered and expired links and bad checksums, and knows multipart uploads, `If-None-Match: *`
and versions. That is why it serves here, and not one of the mocks that accept any signature.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.requirements import require

SCRIPT = Path(__file__).with_name("swift_process.py")


@dataclass(frozen=True)
class S3Server:
    """Where the server is and the account that owns its buckets."""

    endpoint_url: str
    access_key: str = "test:tester"
    secret_key: str = field(default="testing-secret", repr=False)
    region: str = "us-east-1"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which boto3 finds this server, for a worker that a test starts."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }

    def client(self, *, secret_key: str | None = None) -> Any:
        """A boto3 S3 client of the owner, or of someone with another secret; whoever asks for it closes it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            region_name=self.region,
        )

    def create_bucket(self) -> str:
        """A new, empty bucket; its name."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        client.close()
        return name


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """An S3 server that runs inside the `with` block, its objects in `folder`."""
    require(importlib.util.find_spec("swift"), "no S3 server: run `pip install -c constraints.txt swift` (Linux)")
    require(keeps_attributes(folder), f"the S3 server needs extended file attributes, which {folder} lacks: set TMPDIR")
    log = (folder / "swift.log").open("wb")
    account = S3Server("")
    command = [sys.executable, "-I", "-W", "ignore", str(SCRIPT), str(folder), account.access_key, account.secret_key]
    with log, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            yield S3Server(f"http://127.0.0.1:{served_port(process, folder)}")
        finally:
            process.kill()


def served_port(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The port the server prints when it serves; blocks until then or until it ends."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"the S3 server did not start: {(folder / 'swift.log').read_text()[-2000:]}")
    return int(line)


def keeps_attributes(folder: Path) -> bool:
    """Whether files in `folder` can carry extended attributes, where Swift keeps what it knows about an object."""
    if not hasattr(os, "setxattr"):
        return False
    try:
        os.setxattr(folder, "user.swift.test", b"1")
    except OSError:
        return False
    return True
