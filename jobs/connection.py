"""The connection to Redis, whatever its address, and the errors for what can be wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

from redis import Redis, Sentinel
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    TimeoutError,
    TryAgainError,
)

from jobs.errors import BrokerError, BrokerRefused, BrokerUnavailable

SOCKET_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5


FOR_NOW = {
    "OOM": "has no memory left (maxmemory): raise it, or wait until jobs have ended",
    "READONLY": "is a read-only replica: give its master in DG_BROKER_URL",
    "MISCONF": "cannot save to its disk: make room there",
    "NOREPLICAS": "has too few replicas to accept writes (min-replicas-to-write)",
    "MASTERDOWN": "has lost its master",
    "LOADING": "is loading its data",
    "BUSY": "is busy with a script",
    "CLUSTERDOWN": "is a cluster that is down",
    "TRYAGAIN": "is moving keys",
}
"""Refusals that pass, by the word they begin with."""

WORDS: dict[type[BaseException], str] = {
    OutOfMemoryError: "OOM",
    ReadOnlyError: "READONLY",
    MasterDownError: "MASTERDOWN",
    BusyLoadingError: "LOADING",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}
"""The word that redis-py takes off the message when it makes an exception of its own of it."""

SENTINEL_PORT = 26379
SENTINEL_FORM = "sentinel://[user:password@]host[:port];sentinel://host[:port]/db?master=NAME"


@dataclass(frozen=True)
class SentinelAddress:
    """Sentinels that know which Redis is the master of that name; `login` is for the master and its replicas."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int
    login: str

    @classmethod
    def parse(cls, url: str) -> SentinelAddress:
        """Read an address of the form `SENTINEL_FORM`.

        Raises:
            ValueError: it does not have that form.
        """
        parts = [urlsplit(part) for part in url.split(";")]
        masters = parse_qs(parts[-1].query).get("master", [])
        db = parts[-1].path.strip("/") or "0"
        if (
            len(masters) != 1
            or not db.isdigit()
            or not all(part.scheme == "sentinel" and part.hostname for part in parts)
        ):
            raise ValueError(f"expected {SENTINEL_FORM}")
        hosts = tuple((str(part.hostname), part.port or SENTINEL_PORT) for part in parts)
        return cls(hosts, masters[0], int(db), parts[0].netloc.rpartition("@")[0])

    @property
    def celery_url(self) -> str:
        """The same as Celery writes it; it takes the master's name elsewhere."""
        login = f"{self.login}@" if self.login else ""
        return ";".join(f"sentinel://{login}{host}:{port}/{self.db}" for host, port in self.hosts)


def connect(redis_url: str, *, pings: bool = True) -> Redis:
    """Make a client for the ledger; nothing is sent until it is used.

    A call waits at most `SOCKET_TIMEOUT_SECONDS` for an answer; redis-py repeats it a few times over about a second.

    Args:
        pings: try a new or idle connection by a PING. A Redis that cannot write its files refuses that, and with it
            what it would still answer to a client that only reads.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "health_check_interval": 25 if pings else 0,
    }
    if not redis_url.startswith("sentinel://"):
        return Redis.from_url(redis_url, **options)
    address = SentinelAddress.parse(redis_url)
    user, _, password = address.login.partition(":")
    # A Sentinel that is down must cost less than the lease of a job that is running.
    sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]
        address.hosts, sentinel_kwargs={"socket_timeout": 1, "socket_connect_timeout": 1}
    )
    login = {"username": unquote(user) or None, "password": unquote(password) or None}
    return cast(Redis, sentinel.master_for(address.master, Redis, db=address.db, **login, **options))


@contextmanager
def redis_errors(redis: Redis) -> Iterator[None]:
    """Turn what redis-py raises into a `BrokerError` with one line that says what to do."""
    try:
        yield
    except RedisError as error:
        raise broker_error(error, f"Redis at {_address(redis)}") from error


def broker_error(error: BaseException, server: str) -> BrokerError:
    """Say what an error of redis-py, or of a socket, means for the caller.

    Args:
        server: subject of the message, without a password.
    """
    if isinstance(error, AuthenticationError):
        return BrokerUnavailable(f"{server} refuses the password: correct DG_BROKER_URL")
    said = _said(error)
    # From 7 on, Redis appends the place in the script.
    if found := re.search(r"WRONGKEY (\S+) (\S+) (.*?)(?:,? script: .*)?$", said):
        wanted, kind, key = found.groups()
        return BrokerRefused(
            f"{server} holds other data under the ledger's keys: {key} is a {kind}, not a {wanted}; "
            "delete that key, or give the ledger a database or DG_KEY_PREFIX of its own"
        )
    found = re.search(rf"(?:^|: )-?({'|'.join(FOR_NOW)})\b", said)
    if (word := found[1] if found else WORDS.get(type(error))) is not None:
        return BrokerUnavailable(f"{server} {FOR_NOW[word]}")
    if isinstance(error, ConnectionError | TimeoutError) or not isinstance(error, RedisError):
        return BrokerUnavailable(f"{server} does not answer ({said}): start it or correct DG_BROKER_URL")
    return BrokerRefused(f"{server} refuses: {said}")


def _address(redis: Redis) -> str:
    if (master := getattr(redis.connection_pool, "service_name", None)) is not None:
        return f"master {master!r} of the Sentinels"
    options = redis.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _said(error: BaseException) -> str:
    """The first line of an error, without the command and the script that it names."""
    line = (str(error).splitlines() or [type(error).__name__])[0].rpartition(" caused error: ")[2]
    line = re.sub(r"^(Error running script \(call to f_\w+\): )?(@?user_script:\s?\d+: ?)*", "", line)
    line = re.sub(r" script: \w{40}, on @user_script:\d+\.?$", "", line)
    return line.rstrip(".")
