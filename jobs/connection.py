"""The connection to Redis, and one error for everything that can be wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError

from jobs.errors import BrokerUnavailable

SOCKET_TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5


def connect(redis_url: str) -> Redis:
    """Make a client for the ledger; nothing is sent until it is used.

    A call waits at most `SOCKET_TIMEOUT_SECONDS` for an answer; redis-py repeats it a few times over about a second.
    """
    return Redis.from_url(
        redis_url,
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        health_check_interval=25,
    )


@contextmanager
def redis_errors(redis: Redis) -> Iterator[None]:
    """Turn what redis-py raises into `BrokerUnavailable` with one line that says what to do."""
    try:
        yield
    except AuthenticationError as error:
        raise BrokerUnavailable(f"Redis at {_address(redis)} refuses the password: correct DG_BROKER_URL") from error
    except (ConnectionError, TimeoutError) as error:
        raise BrokerUnavailable(
            f"Redis at {_address(redis)} does not answer ({_first_line(error)}): start it or correct DG_BROKER_URL"
        ) from error
    except RedisError as error:
        raise BrokerUnavailable(f"Redis at {_address(redis)} refuses: {_first_line(error)}") from error


def hide_password(url: str) -> str:
    """Write a broker address so that it may be shown."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url


def _address(redis: Redis) -> str:
    options = redis.connection_pool.connection_kwargs
    return str(options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
