"""Redis killed in the middle of a script: the scripts of the ledger, held up at one of their calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

from jobs.errors import BrokerError
from jobs.ledger import Ledger
from jobs.ledger.scripts import DEFAULT_PREFIX, Scripts, source
from jobs.ledger.scripts import SCRIPTS as NAMES
from tests.servers.redis import RedisServer
from tests.waiting import passing

HOLD_UP = """
local all, calls = redis, 0
local redis = setmetatable({call = function(...)
  calls = calls + 1
  if calls > %d then while true do end end
  return all.call(...)
end}, {__index = all})
"""
"""Put before a script: from this call on it runs for ever, and Redis answers nobody."""

BEGIN_SECONDS = 0.2
RETENTION_SECONDS = 86400.0


class HeldUpScripts(Scripts):
    """The ledger's scripts, each of which stops after so many calls of Redis and goes on for ever."""

    def __init__(self, redis: Any, calls: int) -> None:
        super().__init__(redis, DEFAULT_PREFIX, RETENTION_SECONDS, None)
        self._scripts = {name: redis.register_script(HOLD_UP % calls + source(name)) for name in NAMES}

    def run_many(self, name: str, rows: Iterable[Sequence[Any]]) -> list[Any]:
        """Run them one by one: a pipeline would load each script first."""
        return [self.run(name, *row) for row in rows]


def held_up_ledger(redis: Any, calls: int) -> Ledger:
    """A ledger whose next operation stops in its middle, after so many calls of Redis."""
    ledger = Ledger(redis)
    ledger.scripts = HeldUpScripts(redis, calls)
    return ledger


def kill_in_the_middle(server: RedisServer, calls: int, operation: str, arguments: Sequence[Any]) -> None:
    """Begin an operation of the ledger and kill Redis once it has done `calls` calls, or all if it has fewer."""
    with server.client() as redis:
        ledger = held_up_ledger(redis, calls)
        thread = Thread(target=_begin, args=(ledger, operation, arguments), daemon=True)
        thread.start()
        passing(BEGIN_SECONDS)
        server.kill()
        thread.join()


def _begin(ledger: Ledger, operation: str, arguments: Sequence[Any]) -> None:
    with suppress(BrokerError):
        answer = getattr(ledger, operation)(*arguments)
        if isinstance(answer, Iterator):
            list(answer)
