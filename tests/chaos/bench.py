"""The bench: a whole service of real processes, and everything it stands on within a test's reach.

    client --> Redis <--proxy-- worker --gate, proxy--> S3 (Swift)
                                   '------proxy------> callback receiver

Each worker reaches Redis through a proxy of its own, so that one can be cut off while its neighbours go on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from jobs.connection import connect
from jobs.ledger import Ledger
from jobs.settings import load_settings
from producer import Client
from tests.chaos.expected import Expected
from tests.chaos.proxy import TcpProxy, tcp_proxy
from tests.integration.conftest import SECRET, Service
from tests.servers.http import Answer, HttpServer
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server
from tests.servers.worker import WorkerProcess
from tests.storage.s3_gate import s3_gate
from worker.settings import Settings

LEASE_SECONDS = 3.0
SHORT_LEASE = {"DG_LEASE_SECONDS": "1"}
"""For workers that die at once: what is waited for is its end."""

AGAIN_SECONDS = LEASE_SECONDS + 5
"""Within this a dead worker's job runs again, as promised."""

MAX_ATTEMPTS = 3
HOOK = "/hook"


class Store:
    """What stands between the workers and the S3 server: a gate that answers in its place."""

    def __init__(self) -> None:
        self.status: int | None = None
        """Answer every request so; 0 hangs up in the middle of the server's own answer; None passes on."""
        self.delay_seconds = 0.0
        self.requests: list[tuple[str, str]] = []

    def refusal(self, method: str, path: str) -> int | None:
        self.requests.append((method, path))
        time.sleep(self.delay_seconds)
        return self.status


@dataclass(frozen=True)
class Bench(Service):
    """A service to break."""

    redis: RedisServer
    s3: S3Server
    bucket: str
    store: Store
    store_line: TcpProxy
    receiver: HttpServer
    receiver_line: TcpProxy
    random: Random
    stack: ExitStack
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    lines: dict[str, TcpProxy] = field(default_factory=dict)
    sent: dict[str, Expected] = field(default_factory=dict)
    """What faults have submitted themselves."""

    @property
    def runtime(self) -> Path:
        """Where the workers' health files are."""
        return self.folder / "runtime"

    @property
    def hook(self) -> str:
        """Where callbacks go, through a proxy that can be cut."""
        return f"http://127.0.0.1:{self.receiver_line.port}{HOOK}"

    @property
    def input(self) -> str:
        """A picture that is there from the start: nobody meets it half written."""
        return (self.folder / "in" / "cat.png").as_uri()

    @property
    def input_bytes(self) -> bytes:
        return (self.folder / "in" / "cat.png").read_bytes()

    def begin_worker(self, name: str, **environment: str) -> WorkerProcess:
        """Start a worker and do not wait for it."""
        if name not in self.lines:
            self.lines[name] = self.stack.enter_context(tcp_proxy("127.0.0.1", self.redis.port))
        broker = {"DG_BROKER_URL": f"redis://127.0.0.1:{self.lines[name].port}/0"}
        worker = WorkerProcess(
            name, self.folder, {**self.environment, **broker, **environment}, ("-m", "worker", "run")
        )
        self.workers[name] = worker
        return worker

    def start_workers(self, *names: str, **environment: str) -> list[WorkerProcess]:
        """Start workers side by side; all of them take jobs when this returns."""
        started = [self.begin_worker(name, **environment) for name in names]
        for worker in started:
            worker.wait_until_logged("worker_takes_jobs")
        return started

    def start_worker(self, name: str = "w1", **environment: str) -> WorkerProcess:
        return self.start_workers(name, **environment)[0]

    def stop_workers(self) -> None:
        """End every worker, whatever state a test left it in."""
        for worker in self.workers.values():
            if worker.process.poll() is None:
                worker.kill()

    def bucket_uri(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"


@contextmanager
def running_bench(
    folder: Path, redis: RedisServer, s3: S3Server, receiver: HttpServer, seed: int = 0
) -> Iterator[Bench]:
    """A bench without workers yet, on servers that run already."""
    store, swift, http = Store(), urlsplit(s3.endpoint_url), urlsplit(receiver.url(""))
    with ExitStack() as stack:
        gate = urlsplit(stack.enter_context(s3_gate(f"http://{swift.netloc}", store.refusal)))
        store_line = stack.enter_context(tcp_proxy("127.0.0.1", gate.port or 0))
        receiver_line = stack.enter_context(tcp_proxy("127.0.0.1", http.port or 0))
        receiver.answer(HOOK, Answer(204))
        bucket = s3.create_bucket()
        environment = {
            **s3.environment,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{store_line.port}",
            "AWS_EC2_METADATA_DISABLED": "true",
            "DG_OUTPUT_URI": (folder / "out").as_uri(),
            "DG_FILE_ROOTS": str(folder / "in"),
            "DG_BUCKETS": bucket,
            "DG_PRIVATE_HOSTS": "127.0.0.1",
            "DG_CALLBACK_SECRET": SECRET,
            "DG_CALLBACK_TIMEOUT_SECONDS": "1",
            "DG_LEASE_SECONDS": str(LEASE_SECONDS),
            "DG_MAX_ATTEMPTS": str(MAX_ATTEMPTS),
            "DG_FLUX_KONTEXT_ENGINE": "tests.chaos.engines:steady",
            "STANDIN_STEP_SECONDS": "0.1",
        }
        settings = load_settings(Settings, broker_url=redis.url, output_uri=environment["DG_OUTPUT_URI"])
        ledger, client = Ledger(connect(settings.redis_url)), Client(settings=settings)
        bench = Bench(
            *(folder, settings, client, ledger, environment, redis, s3, bucket),
            *(store, store_line, receiver, receiver_line, Random(seed), stack),
        )
        bench.picture()
        stack.callback(bench.stop_workers)
        yield bench
