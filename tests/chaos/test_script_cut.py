"""Redis killed in the middle of a script: nothing of the script has happened, and the same call does all of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from jobs.ledger import Ledger
from jobs.schema import JobState
from tests.chaos.script_cut import kill_in_the_middle
from tests.jobs.lives import DONE, LEASE_SECONDS, OUTPUT_ROOT, claimed, edit_job, submit
from tests.servers.redis import RedisServer


def contents(server: RedisServer) -> dict[str, Any]:
    """Every key with what it holds; the order within a hash is not its content."""
    with server.client() as client:
        read: dict[str, Callable[[str], Any]] = {
            "hash": client.hgetall,
            "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
            "string": client.get,
        }
        return {key: read[client.type(key)](key) for key in client.scan_iter()}


def arguments_of(operation: str, ledger: Ledger) -> tuple[Any, ...]:
    """What the operation is called with; the jobs that it needs are there afterwards."""
    callback = {"url": "https://a.example/hook"}
    submit(ledger, edit_job("waits", batch="a:jobs"), edit_job("runs", batch="a:jobs", callback=callback))
    claim = claimed(ledger, "runs")
    return {
        "submit": ([edit_job("new", batch="a:jobs")], OUTPUT_ROOT),
        "claim_best": ("w2", LEASE_SECONDS),
        "finish": ("runs", claim.token, JobState.SUCCEEDED, DONE),
        "requeue": ("runs", claim.token, "worker_lost"),
        "cancel": ("waits",),
    }[operation]


@pytest.mark.parametrize("calls", [4, 7])
@pytest.mark.parametrize("operation", ["submit", "claim_best", "finish", "requeue", "cancel"])
def test_a_script_that_is_cut_has_never_been(
    operation: str, calls: int, redis_server: RedisServer, redis_client: redis.Redis
) -> None:
    ledger = Ledger(redis_client)
    arguments = arguments_of(operation, ledger)
    before = contents(redis_server)

    kill_in_the_middle(redis_server, calls, operation, arguments)
    redis_server.start()

    assert contents(redis_server) == before
    answer = getattr(ledger, operation)(*arguments)
    assert answer is not None
    if operation == "submit":
        assert [submission.verdict for submission in answer] == ["created"]
    assert contents(redis_server) != before
