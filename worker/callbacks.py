"""Delivers callbacks from the ledger's outbox: at least once, signed, tried for three days.

Each attempt carries the same `webhook-id`, so that receivers can tell a repeat. A callback never holds the GPU and
never changes its job.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import uniform
from typing import TYPE_CHECKING

from jobs.errors import EditFailure, JobNotFound
from jobs.ledger import MICROSECONDS, DueCallback, Ledger, Verdict
from jobs.settings import Settings
from jobs.signing import callback_headers

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.5
PARALLEL = 8
"""Callbacks under way at once: a receiver that hangs holds up seven others at most."""

MINUTE, HOUR = 60.0, 3600.0
DELAYS_SECONDS = (
    *(5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR),
    *(12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR),
)
"""Pause after each failed attempt, before jitter; about three days in all, within the ledger's retention."""

LONGEST_RETRY_AFTER_SECONDS = 24 * HOUR


@dataclass(frozen=True)
class Reply:
    """What a receiver answered, as far as it matters.

    `status` is 0 when nothing came back; `is_refused` when the address may not be called at all.
    """

    status: int
    said: str
    retry_after_seconds: float | None = None
    is_refused: bool = False


class CallbackSender:
    """Takes due callbacks and delivers them.

    Args:
        client: an HTTP client that follows no redirects and refuses private addresses.
    """

    def __init__(self, settings: Settings, ledger: Ledger, client: httpx2.Client) -> None:
        self._secrets = settings.callback_secrets
        self._hide_seconds = settings.callback_timeout_seconds * 3
        self._ledger = ledger
        self._client = client
        self._executor = ThreadPoolExecutor(PARALLEL, thread_name_prefix="callback")

    def tick(self) -> int:
        """Deliver what is due and return how many were tried.

        Raises:
            BrokerUnavailable: Redis does not answer; what was not settled comes again.
        """
        due = self._ledger.take_callbacks(PARALLEL, self._hide_seconds)
        for _ in self._executor.map(self._deliver, due):
            pass
        return len(due)

    def close(self) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def _deliver(self, due: DueCallback) -> None:
        try:
            record = self._ledger.ending(due)
        except JobNotFound:
            self._ledger.settle_callback(due.webhook_id, "dropped", "the job is no longer in the ledger")
            return
        callback = record.job.callback
        if callback is None:
            self._ledger.settle_callback(due.webhook_id, "dropped", "the job names no callback")
            return
        reply = self._post(callback.url, due.webhook_id, record.event().model_dump_json().encode())
        verdict, delay = judge(reply, due.attempts + 1)
        self._ledger.settle_callback(due.webhook_id, verdict, reply.said, delay)
        level = logging.INFO if verdict == "delivered" else logging.WARNING
        log.log(
            level,
            "callback_%s job=%s attempt=%d said=%s retry_in=%.0f",
            *(verdict, due.job_id, due.attempts + 1, reply.said, delay),
        )

    def _post(self, url: str, webhook_id: str, body: bytes) -> Reply:
        # Receivers refuse a time that is minutes off: it is that of Redis, since this machine's clock may be wrong.
        timestamp = self._ledger.now_us() // MICROSECONDS
        headers = callback_headers(self._secrets, webhook_id, timestamp, body)
        try:
            response = self._client.post(url, content=body, headers=headers)
        except EditFailure as failure:
            return Reply(0, failure.message, is_refused=not failure.retryable)
        except Exception as error:  # whatever a transport raises, the attempt has failed and is tried again
            return Reply(0, f"{type(error).__name__}: {error}")
        status, retry_after = response.status_code, _retry_after(response.headers.get("retry-after"))
        return Reply(status, f"HTTP {status}", retry_after)


def judge(reply: Reply, attempt: int, jitter: Callable[[float, float], float] = uniform) -> tuple[Verdict, float]:
    """Say what follows from a reply to the attempt of that number: delivered, dropped, or pending after a delay.

    2xx is delivered; 410 asks for no more; everything else, redirects included, is tried again.
    """
    if 200 <= reply.status < 300:
        return "delivered", 0
    if reply.status == 410 or reply.is_refused or attempt > len(DELAYS_SECONDS):
        return "dropped", 0
    delay = DELAYS_SECONDS[attempt - 1] * jitter(0.8, 1.2)
    return "pending", max(delay, min(reply.retry_after_seconds or 0, LONGEST_RETRY_AFTER_SECONDS))


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
    except ValueError:
        return None
