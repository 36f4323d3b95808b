"""Redis as people run it: `worker check` on configurations that lose jobs, TLS with a private authority, other keys."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import BrokerUnavailable
from jobs.schema import EditJob, JobState
from jobs.settings import BrokerSettings, load_settings
from producer import Client
from producer.waiting import no_worker_hint
from tests.integration.conftest import Service, StartWorker
from tests.jobs.certificates import self_signed
from tests.requirements import require
from tests.servers.redis import free_port, running_redis
from tests.servers.worker import running_worker
from tests.waiting import PATIENCE_SECONDS, eventually
from worker.check import Level, check_redis
from worker.settings import Settings

GOOD = {"maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(
    ("options", "warned_of"),
    [
        (GOOD, set()),
        ({**GOOD, "appendonly": "no"}, {"redis persistence"}),
        ({"maxmemory-policy": "allkeys-lru"}, {"redis eviction"}),
        ({"maxmemory-policy": "volatile-ttl", "appendonly": "no"}, {"redis persistence", "redis eviction"}),
    ],
)
def test_check_warns_of_a_redis_that_can_lose_jobs(
    tmp_path: Path, options: dict[str, str], warned_of: set[str]
) -> None:
    with running_redis(tmp_path, **options) as server:
        findings = list(check_redis(load_settings(Settings, broker_url=server.url)))

    assert findings[0].level is Level.OK
    assert {finding.subject for finding in findings if finding.level is Level.WARN} == warned_of
    assert all(finding.remedy for finding in findings[1:])


def test_check_names_a_read_only_replica_and_a_full_redis_in_one_line(tmp_path: Path) -> None:
    with running_redis(tmp_path, replicaof="127.0.0.1 1") as replica:  # a master that nobody needs to reach
        findings = list(check_redis(load_settings(Settings, broker_url=replica.url)))
    (refused,) = (finding for finding in findings if finding.level is Level.FAIL)
    assert "is a read-only replica" in refused.found
    assert refused.remedy == "give its master in DG_BROKER_URL"

    with running_redis(tmp_path, maxmemory=1, **GOOD) as full:
        findings = list(check_redis(load_settings(Settings, broker_url=full.url)))
    (refused,) = (finding for finding in findings if finding.level is Level.FAIL)
    assert "has no memory left" in refused.found
    assert refused.remedy.startswith("raise it")


def test_check_warns_of_no_password_on_an_address_that_others_reach(tmp_path: Path) -> None:
    with running_redis(tmp_path, bind="0.0.0.0", **{"protected-mode": "no"}) as server:
        url = f"redis://0.0.0.0:{server.port}/0"  # this machine, by a name that is not the loopback one
        open_to_all = {finding.subject for finding in check_redis(load_settings(Settings, broker_url=url))}
        with server.client() as client:
            client.config_set("requirepass", "secret")
        with_password = {
            finding.subject
            for finding in check_redis(load_settings(Settings, broker_url=url.replace("//", "//:secret@")))
        }

    assert open_to_all - with_password == {"redis password"}


def test_another_prefix_is_another_ledger(service: Service, start_worker: StartWorker) -> None:
    settings = service.settings.model_copy(update={"key_prefix": "team-b:"})
    client = Client(settings=settings)
    worker = start_worker(DG_KEY_PREFIX="team-b:")

    client.submit(EditJob(id="a", image=service.picture(), prompt="make it snow"))

    assert client.wait("a", PATIENCE_SECONDS).state is JobState.SUCCEEDED
    assert service.ledger.get_many(["a"]) == [None]
    assert not list(service.ledger.redis.scan_iter("dg:*"))

    service.client.submit(EditJob(id="b", image=service.picture(), prompt="make it snow"))

    eventually(lambda: "jobs_unknown messages=1 job=b prefix=team-b: remedy=" in worker.log)
    assert no_worker_hint(service.client) == (
        "no worker has DG_KEY_PREFIX=dg:, but one with team-b: takes messages of this queue; "
        "give producers and workers the same"
    )
    (found,) = [finding for finding in check_redis(service.settings) if finding.subject == "redis prefix"]
    assert "workers with DG_KEY_PREFIX=team-b: are on this queue" in found.found


@pytest.fixture
def tls_redis(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and certificate authority of a Redis that speaks TLS only."""
    binary = _redis_with_tls()
    require(binary, "no redis-server that speaks TLS: sudo apt-get install redis-server")
    _, trusted = self_signed("localhost", tmp_path)
    port = free_port()
    options = f"--port 0 --tls-port {port} --tls-auth-clients no --appendonly yes --dir {tmp_path}"
    files = f"--tls-cert-file {trusted} --tls-key-file {tmp_path / 'private.pem'} --tls-ca-cert-file {trusted}"
    with (tmp_path / "redis.log").open("wb") as log:
        process = subprocess.Popen([str(binary), *options.split(), *files.split()], stdout=log, stderr=log)
    try:
        eventually(lambda: _accepts(port), what=f"Redis listens, see {tmp_path}/redis.log")
        yield f"rediss://localhost:{port}/0", trusted
    finally:
        process.kill()
        process.wait()


def test_one_address_with_a_private_authority_serves_ledger_and_celery(
    tls_redis: tuple[str, Path], service: Service, tmp_path: Path
) -> None:
    address, authority = tls_redis
    url = f"{address}?ssl_ca_certs={authority}"
    client = Client(settings=load_settings(BrokerSettings, broker_url=url, output_uri=service.settings.output_uri))

    with running_worker("w1", tmp_path, {**service.environment, "DG_BROKER_URL": url}):
        client.submit(EditJob(id="a", image=service.picture(), prompt="make it snow"))
        assert client.wait("a", PATIENCE_SECONDS).state is JobState.SUCCEEDED


def test_a_certificate_of_nobody_we_trust_is_refused_by_ledger_and_celery(tls_redis: tuple[str, Path]) -> None:
    address, _ = tls_redis
    client = Client(address)

    with pytest.raises(BrokerUnavailable, match=r"(?i)certificate verify failed"):
        client.ledger.queue_counts()
    with pytest.raises(BrokerUnavailable, match=r"(?i)certificate verify failed"):
        client._queue.send(["a"])


def _redis_with_tls() -> Path | None:
    for name in ("redis-server", "valkey-server"):
        binary = shutil.which(name)
        # One that speaks TLS misses its certificate and says so; another one does not know the option.
        if binary and b"TLS" in subprocess.run([binary, "--tls-port", "1", "--port", "0"], capture_output=True).stdout:
            return Path(binary)
    return None


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
