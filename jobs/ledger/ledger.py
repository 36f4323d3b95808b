"""The ledger: one record per job in Redis, which holds the truth about the job's life.

    submit --> queued --claim--> running --finish--> succeeded | failed | cancelled
                 ^                  |
                 |<--- requeue -----|  (back-off, or a draining worker)
                 '<--- expire ------'  (the worker went silent; after the last attempt: failed)

    failed | cancelled --retry--> queued   (by hand only: another round of attempts under the same id)

Every arrow is one script of `lua/`, hence atomic. A message in the queue only hints that a job waits; a worker that
receives it must `claim` the job, and of two claims one is refused. A claim is a lease: a worker that does not `renew`
it in time loses the job, and its later writes are refused by their token.
"""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from jobs.connection import connect
from jobs.ledger.life import JobLife
from jobs.ledger.repairs import Repairs
from jobs.ledger.scripts import DEFAULT_PREFIX, Scripts
from jobs.settings import BrokerSettings


class Ledger(JobLife, Repairs):
    """Reads jobs (`reading.py`), changes them (`life.py`) and repairs what was lost (`repairs.py`).

    Args:
        redis: a client that decodes responses.
        prefix: start of every key.
        retention_seconds: how long an ended job is kept.
        clock: microseconds since 1970, for tests; None uses the clock of the Redis server, the only one all share.

    Every method raises `BrokerError` when Redis does not answer or refuses.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = DEFAULT_PREFIX,
        retention_seconds: float = 7 * 86400,
        clock: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(Scripts(redis, prefix, retention_seconds, clock))

    @classmethod
    def from_settings(cls, settings: BrokerSettings) -> Ledger:
        return cls(connect(settings.redis_url), settings.key_prefix, settings.retention_seconds)

    @property
    def redis(self) -> Redis:
        """The client, for what lies beside the ledger in the same Redis."""
        return self.scripts.redis

    def key(self, *parts: str) -> str:
        """The key of this name in Redis."""
        return self.scripts.key(*parts)

    def now_us(self) -> int:
        """The ledger's time in microseconds."""
        return self.scripts.now_us()
