"""A bench of its own for each test that breaks things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.bench import Bench, running_bench
from tests.servers.http import HttpServer
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server


@pytest.fixture
def bench(redis_server: RedisServer, s3_server: S3Server, http_server: HttpServer, tmp_path: Path) -> Iterator[Bench]:
    with running_bench(tmp_path, redis_server, s3_server, http_server) as bench:
        yield bench
