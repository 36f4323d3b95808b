"""A Redis with a replica, watched by three real Sentinels that make the replica the master when it dies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from producer.embedded.private_redis import HOW_TO_INSTALL, find_redis_server
from tests.requirements import require
from tests.servers.redis import RedisServer, free_port, running_redis
from tests.waiting import eventually

MASTER = "edits-master"
SENTINELS, QUORUM = 3, 2
SILENT_AFTER_MS = 1000


@dataclass(frozen=True)
class ReplicatedRedis:
    """Two Redis servers and the Sentinels' ports."""

    master: RedisServer
    replica: RedisServer
    sentinel_ports: list[int]

    @property
    def url(self) -> str:
        """The address for `DG_BROKER_URL`."""
        hosts = ";".join(f"sentinel://127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"{hosts}/0?master={MASTER}"


@contextmanager
def running_sentinels(folder: Path) -> Iterator[ReplicatedRedis]:
    """Master, replica in step with it, and Sentinels that know each other, inside the `with` block."""
    with ExitStack() as stack:
        for name in ("master", "replica"):
            (folder / name).mkdir()
        master = stack.enter_context(running_redis(folder / "master"))
        replica = stack.enter_context(running_redis(folder / "replica"))
        with replica.client() as client:
            client.replicaof("127.0.0.1", master.port)
        ports = [free_port() for _ in range(SENTINELS)]
        for port in ports:
            stack.callback(_stop, _start_sentinel(folder, port, master.port))
        eventually(lambda: _are_acquainted(ports[-1]), what="the Sentinels know each other")
        yield ReplicatedRedis(master, replica, ports)


def _start_sentinel(folder: Path, port: int, master_port: int) -> subprocess.Popen[bytes]:
    binary = find_redis_server()
    require(binary, HOW_TO_INSTALL)
    configuration = folder / f"sentinel-{port}.conf"
    configuration.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/sentinel-{port}.log\n"
        f"sentinel monitor {MASTER} 127.0.0.1 {master_port} {QUORUM}\n"
        f"sentinel down-after-milliseconds {MASTER} {SILENT_AFTER_MS}\n"
        f"sentinel failover-timeout {MASTER} 5000\n"
    )
    return subprocess.Popen([str(binary), str(configuration), "--sentinel"], stdin=subprocess.DEVNULL)


def _are_acquainted(port: int) -> bool:
    try:
        with redis.Redis(port=port, decode_responses=True) as sentinel:
            facts = sentinel.sentinel_master(MASTER)
    except redis.exceptions.RedisError:
        return False
    return (facts["num-slaves"], facts["num-other-sentinels"]) == (1, SENTINELS - 1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
