"""Notices that messages wait while this worker, which has nothing to do, takes none.

Such a worker looks well from every other side: its threads beat, its model is loaded, Redis answers. It is judged by
the outcome, the queue, and not by the gate or the consumer that it would have to blame. First it says that it is not
ready; when that lasts it ends itself, since a supervisor that only asks whether it lives would leave it there for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MUTE_SECONDS = 30.0
"""Longer than a consumer needs to find a connection that died without a word (20 s)."""

GAP_SECONDS = 10.0
"""Looks are a second apart; after a longer gap Redis was away or the process stood still, which nobody can blame on
the worker: its consumer needs time to connect again."""


class Untaken:
    """Watches the queue of an idle worker; `look` is called about once a second, `taken` for each message.

    Args:
        count: asks how many messages wait.
        is_idle: True while the worker could begin a job at once.
        clock: seconds, for tests.
    """

    def __init__(
        self, count: Callable[[], int], is_idle: Callable[[], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._count = count
        self._is_idle = is_idle
        self._clock = clock
        self._since: float | None = None
        self._looked_at: float | None = None
        self.reason = ""
        """Why the worker is not ready, in words; empty while all is well."""

    @property
    def seconds(self) -> float:
        """For how long this worker has taken none of the messages that wait."""
        return 0.0 if self._since is None else self._clock() - self._since

    def taken(self) -> None:
        """A message has come."""
        self._since, self.reason = None, ""

    def look(self) -> None:
        """Compare the queue with what this worker does; time without a look does not count.

        Raises:
            BrokerError: Redis does not answer.
        """
        if not self._is_idle() or not (waiting := self._count()):
            self.taken()
            return
        now = self._clock()
        if self._looked_at is None or now - self._looked_at > GAP_SECONDS:
            self.taken()
        self._looked_at = now
        self._since = now if self._since is None else self._since
        if self.seconds > MUTE_SECONDS:
            self.reason = f"idle, but none of {waiting} waiting messages was taken for {self.seconds:.0f} s; restart it"
