"""A service as it stands in production: real daemons on a real Redis, watched by a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml
from PIL import Image

from jobs.schema import EditJob
from jobs.settings import load_settings
from producer import Client
from tests.chaos.narrow import small_disk
from tests.deploy.alerts.rules import quick_rules
from tests.servers.http import Answer, HttpServer, running_http
from tests.servers.redis import RedisServer, free_port, running_redis
from tests.servers.worker import WorkerProcess
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.settings import Settings

WORKERS = ("gpu0", "gpu1")
BESIDE = ("exporter", "callbacks")
HOOK = "/hook"
LEASE_SECONDS = "2"
REDIS_DISK_BYTES = 64 << 20
"""As root Redis has a disk of its own, for a cause to fill."""


@dataclass
class Site:
    """Daemons by name, started and ended one by one; all have their port for good, as Prometheus knows it."""

    folder: Path
    redis: RedisServer
    receiver: HttpServer
    client: Client
    prometheus_url: str
    ports: dict[str, int]
    daemons: dict[str, WorkerProcess] = field(default_factory=dict)

    @property
    def image(self) -> str:
        return (self.folder / "in" / "cat.png").as_uri()

    def start(self, *names: str) -> None:
        """Start daemons side by side; they are ready when this returns."""
        for name in names:
            command = "run" if name in WORKERS else name
            environment = {**self.environment, "DG_METRICS_PORT": str(self.ports[name])}
            self.daemons[name] = WorkerProcess(name, self.folder, environment, ("-m", "worker", command))
        for name in names:
            eventually(
                lambda daemon=name: self._is_ready(daemon), what=f"{name} is ready, see {self.folder}/{name}.log"
            )

    def kill(self, *names: str) -> None:
        """End daemons as the kernel would (SIGKILL)."""
        for name in names:
            self.daemons.pop(name).kill()

    def submit(self, batch: str, count: int, *, every: int = 0, bad: str = "", steps: int = 1, **fields: Any) -> None:
        """Submit jobs; with `every`, each so many-th has the image `bad`."""
        jobs = [
            EditJob.model_validate(
                {
                    "id": f"{batch}-{number}",
                    "batch": batch,
                    "image": bad if every and number % every == 0 else self.image,
                    "prompt": "make it snow",
                    "params": {"num_inference_steps": steps},
                    **fields,
                }
            )
            for number in range(count)
        ]
        list(self.client.submit_many(jobs))

    def firing(self) -> dict[str, str]:
        """The alerts that fire now, with what they tell whoever is woken."""
        with urlopen(f"{self.prometheus_url}/api/v1/alerts", timeout=PATIENCE_SECONDS) as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return {
            alert["labels"]["alertname"]: alert["annotations"]["summary"]
            for alert in alerts
            if alert["state"] == "firing"
        }

    def keep_logs(self) -> Path:
        """Copy the logs to where they stay; the folder."""
        kept = Path(tempfile.mkdtemp(prefix="kontext-alerts-logs-"))
        for log in self.folder.glob("*.log"):
            shutil.copy(log, kept)
        return kept

    @property
    def environment(self) -> dict[str, str]:
        return {
            "DG_BROKER_URL": self.redis.url,
            "DG_OUTPUT_URI": (self.folder / "out").as_uri(),
            "DG_FILE_ROOTS": str(self.folder / "in"),
            "DG_PRIVATE_HOSTS": "127.0.0.1",
            "DG_LEASE_SECONDS": LEASE_SECONDS,
            "DG_FLUX_KONTEXT_ENGINE": "standin",
            "STANDIN_STEP_SECONDS": "0.02",
        }

    def _is_ready(self, name: str) -> bool:
        if (code := self.daemons[name].process.poll()) is not None:
            raise AssertionError(f"{name} ended with code {code}:\n{self.daemons[name].log}")
        try:
            with urlopen(f"http://127.0.0.1:{self.ports[name]}/readyz", timeout=PATIENCE_SECONDS) as answer:
                return int(answer.status) == 200
        except OSError:
            return False


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """A service that is well: two workers, callbacks, exporter, and a Prometheus that has seen all of them."""
    (folder / "in").mkdir()
    Image.new("RGB", (64, 48), "orange").save(folder / "in" / "cat.png")
    ports = {name: free_port() for name in (*WORKERS, *BESIDE)}
    with ExitStack() as stack:
        disk = folder / "redis"
        if os.geteuid() == 0:
            stack.enter_context(small_disk(disk, REDIS_DISK_BYTES))
        else:
            disk.mkdir()
        redis = stack.enter_context(running_redis(disk))
        receiver = stack.enter_context(running_http())
        receiver.answer(HOOK, Answer(204))
        settings = load_settings(Settings, broker_url=redis.url, output_uri=(folder / "out").as_uri())
        client = Client(settings=settings)
        site = Site(folder, redis, receiver, client, stack.enter_context(prometheus(folder, ports)), ports)
        stack.callback(lambda: site.kill(*site.daemons))
        site.start(*WORKERS, *BESIDE)
        yield site


@contextmanager
def prometheus(folder: Path, ports: dict[str, int]) -> Iterator[str]:
    """A Prometheus that asks the daemons every second; yields its address."""
    scraped = {"kontext-worker": WORKERS, **{f"kontext-{name}": (name,) for name in BESIDE}}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [f"127.0.0.1:{ports[name]}"], "labels": {"instance": name}} for name in names
                ],
            }
            for job, names in scraped.items()
        ],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump(quick_rules()))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
