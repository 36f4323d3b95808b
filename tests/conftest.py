"""Fixtures for every test: real servers, and a process cut off from the person's accounts and from the network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest
import redis

from jobs.ledger import Ledger
from tests.clock import ManualClock
from tests.isolation import forbid_network, isolate_environment
from tests.order import deal_long_tests
from tests.servers.http import HttpServer, running_http
from tests.servers.redis import RedisServer, running_redis
from tests.servers.s3 import S3Server, running_s3

MOST_PROCESSES = 8


def pytest_configure() -> None:
    isolate_environment()
    forbid_network()
    # A shell that runs the tests in the background has them ignore Ctrl-C, and `nohup` the end of the terminal; what
    # they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _pass_over)  # as good as ignored here; what is started has the default


def _pass_over(number: int, frame: FrameType | None) -> None:
    pass


def pytest_xdist_auto_num_workers() -> int:
    """Processes of `-n auto`: half of the tests' time is waiting for workers, leases and servers, so two fill a core.

    Beyond `MOST_PROCESSES` there is one for each core: every one of them imports torch, and collects all tests.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores, min(2 * cores, MOST_PROCESSES))


@pytest.hookimpl(trylast=True)  # after `-m` has left out some
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = deal_long_tests(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """An empty Redis of this test's own, to kill, freeze and restart; it starts in a few hundredths of a second."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of `redis_server` that answers in strings."""
    with redis_server.client() as client:
        yield client


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One S3 server for the whole run; tests keep apart by their buckets."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """The name of a new, empty bucket."""
    return s3_server.create_bucket()


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    """An HTTP server that knows nothing yet: every path is a 404 until the test writes an answer."""
    with running_http() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    """The ledger's clock in tests that move it."""
    return ManualClock()


@pytest.fixture
def ledger(redis_client: redis.Redis, clock: ManualClock) -> Ledger:
    """A ledger on `redis_server`, by `clock`."""
    return Ledger(redis_client, clock=clock)
