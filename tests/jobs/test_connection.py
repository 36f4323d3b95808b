"""What is said of the way to Redis: that it is away, and never its password."""

from __future__ import annotations

import pytest

from jobs.connection import hide_password
from jobs.errors import BrokerUnavailable
from jobs.ledger import Ledger
from tests.servers.redis import RedisServer


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://user:secret@host/0", "redis://user:***@host/0"),
        ("redis://:sec@ret@host/0", "redis://:***@host/0"),
        ("redis://host/0?password=secret&x=1", "redis://host/0?password=***&x=1"),
    ],
)
def test_a_password_is_never_shown(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_a_redis_that_is_away_is_one_clear_error(ledger: Ledger, redis_server: RedisServer) -> None:
    redis_server.kill()

    with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{redis_server.port} does not answer .*DG_BROKER_URL"):
        ledger.get("a")
