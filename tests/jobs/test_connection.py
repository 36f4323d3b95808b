"""What is said of the way to Redis: that it is away, and never its password."""

from __future__ import annotations

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from jobs.connection import broker_error
from jobs.errors import BrokerRefused, BrokerUnavailable
from jobs.ledger import Ledger
from producer import Client
from tests.jobs.lives import edit_job
from tests.servers.redis import RedisServer


def test_a_redis_that_is_away_is_one_clear_error(ledger: Ledger, redis_server: RedisServer) -> None:
    redis_server.kill()

    with pytest.raises(BrokerUnavailable, match=rf"127\.0\.0\.1:{redis_server.port} does not answer .*DG_BROKER_URL"):
        ledger.get("a")


def test_a_full_redis_and_a_replica_are_one_clear_line_and_pass(redis_server: RedisServer, redis_client: Redis) -> None:
    client = Client(redis_server.url)
    redis_client.config_set("maxmemory", 1)
    with pytest.raises(
        BrokerUnavailable, match=rf"^Redis at \S+:{redis_server.port} has no memory left .maxmemory.: raise it"
    ):
        client.submit(edit_job("a"))
    redis_client.config_set("maxmemory", 0)

    redis_client.replicaof("127.0.0.1", 1)
    with pytest.raises(
        BrokerUnavailable, match=r"^Redis at \S+ is a read-only replica: give its master in DG_BROKER_URL$"
    ):
        client.submit(edit_job("a"))
    redis_client.replicaof("no", "one")

    client.submit(edit_job("a"))


def test_a_write_that_redis_refuses_is_not_an_outage(redis_server: RedisServer, redis_client: Redis) -> None:
    client = Client(redis_server.url)
    redis_client.set("edits", "no list")
    with pytest.raises(BrokerRefused, match=rf"^Redis at \S+:{redis_server.port} refuses: WRONGTYPE "):
        client.submit(edit_job("a"))


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", BrokerUnavailable, "has no memory left"),
        ("Command # 1 (LPUSH OOM) of pipeline caused error: WRONGTYPE Op", BrokerRefused, "refuses: WRONGTYPE"),
        ("Error running script (call to f_ab12): @user_script:35: -MISCONF Redis is", BrokerUnavailable, "cannot save"),
        ("Error running script (call to f_a1): @user_script: 35: WRONGTYPE Op", BrokerRefused, "refuses: WRONGTYPE Op"),
        ("WRONGTYPE Op script: " + "a" * 40 + ", on @user_script:5.", BrokerRefused, "refuses: WRONGTYPE Op"),
        ("ERR user_script:41: WRONGKEY zset string dg:queued script: " + "a" * 40 + ", on @user_script:5.",
         BrokerRefused, "dg:queued is a string, not a zset;"),
        ("unknown command 'FCALL'", BrokerRefused, "refuses: unknown command"),
    ],
)  # fmt: skip
def test_what_redis_says_becomes_one_line(said: str, kind: type[Exception], message: str) -> None:
    error = broker_error(ResponseError(said), "Redis at h:1")

    assert type(error) is kind
    assert str(error).startswith("Redis at h:1 ")
    assert message in str(error)
    assert "script" not in str(error)
