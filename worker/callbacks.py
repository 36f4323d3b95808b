"""Delivers callbacks from the ledger's outbox: at least once, signed, tried for three days.

Each attempt carries the same `webhook-id`, so that receivers can tell a repeat. A callback never holds the GPU and
never changes its job.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import uniform
from threading import BoundedSemaphore, Event
from typing import TYPE_CHECKING

from jobs.errors import BrokerError, EditFailure, JobNotFound
from jobs.ledger import MICROSECONDS, DueCallback, JobRecord, Ledger, Outbox, Verdict
from jobs.names import host_of
from jobs.schema import JobState
from jobs.shown import hide_secrets, one_line
from storage.hosts import Hosts
from storage.signing import callback_headers
from storage.transfer import Transfer
from worker.events import (
    NOWHERE,
    CallbackFailed,
    CallbackNotSettled,
    CallbackRetried,
    CallbackSettled,
    Events,
    NewsTold,
    Origin,
)
from worker.settings import Settings

if TYPE_CHECKING:
    import httpx2

INTERVAL_SECONDS = 0.5
PARALLEL = 16
"""Callbacks under way at once."""

BURST = 500
"""Callbacks begun in one tick: a tick must end, or a worker that stops would wait for the whole outbox."""

MINUTE, HOUR = 60.0, 3600.0
POSTPONED_SECONDS = 10.0, 10 * MINUTE
"""Shortest and longest pause of a callback whose receiver is silent while another one waits for its answer."""

SILENCE_PER_PAUSE = 4
"""That pause is a quarter of the silence, so a receiver that is back waits for a quarter of its absence at most."""

LOOKS_PER_SECOND = 50
"""Postponed callbacks that all senders together look at again: however many there are, others come in between."""

DELAYS_SECONDS = (
    *(5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR),
    *(12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR, 12 * HOUR),
)
"""Pause after each failed attempt, before jitter; about three days in all, within the ledger's retention."""

LONGEST_RETRY_AFTER_SECONDS = 24 * HOUR

CLOSING_SECONDS = 1.0
"""What a process that ends waits for receivers that have a callback of its; unanswered ones are sent again."""

CLOSING_POLL_SECONDS = 0.02


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
        client: an HTTP client that follows no redirects, refuses private addresses, and ends every exchange in time.
        jitter: draws the factor by which a pause is stretched, between two bounds.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        client: httpx2.Client,
        events: Events,
        jitter: Callable[[float, float], float] = uniform,
    ) -> None:
        self._signing = settings.signing
        self._hide_seconds = settings.callback_timeout_seconds * 3
        self._ledger = ledger
        self._outbox = Outbox(ledger)
        self._client = client
        self._events = events
        self._jitter = jitter
        self._receivers = Hosts()
        self._slots = BoundedSemaphore(PARALLEL)
        self._executor = ThreadPoolExecutor(PARALLEL, thread_name_prefix="callback")
        self._is_closed = Event()
        self._exchanges: set[Transfer] = set()

    def tick(self) -> int:
        """Begin to deliver what is due, as slots come free, and return how many were begun; none once it is closed.

        Raises:
            BrokerError: Redis does not answer; what was not settled comes again.
        """
        for begun in range(BURST):
            if self._is_closed.is_set() or not self._slots.acquire(timeout=INTERVAL_SECONDS):
                return begun
            try:
                due = self._outbox.take(1, self._hide_seconds)
            except BrokerError:
                self._slots.release()
                raise
            if not due:
                self._slots.release()
                return begun
            try:
                self._executor.submit(self._deliver_and_free, due[0])
            except RuntimeError:  # closed between the look and the take: whoever takes it next sends it
                self._slots.release()
                self._outbox.postpone(due[0].webhook_id, 0)
                return begun
        return BURST

    def close(self) -> None:
        """Take no more, and end what is under way, with a moment for receivers that are about to answer.

        A callback whose receiver has not answered by then is due again at once, for another sender. Another thread may
        still be in `tick`.
        """
        self._is_closed.set()
        deadline = time.monotonic() + CLOSING_SECONDS
        while self._exchanges and time.monotonic() < deadline:
            time.sleep(CLOSING_POLL_SECONDS)
        for exchange in tuple(self._exchanges):
            exchange.leave()
        self._executor.shutdown(wait=True)  # each one that was begun has a slot, and so a thread: none is dropped
        self._client.close()

    def _deliver_and_free(self, due: DueCallback) -> None:
        try:
            self._deliver(due)
        except BrokerError as error:  # not settled, so it comes again
            self._events.send(CallbackNotSettled(due.job_id, str(error)))
        except Exception as error:  # counted as an attempt, so that it ends some day
            self._events.send(CallbackFailed(due.job_id, error))
            with suppress(BrokerError):
                self._settle(due, Reply(0, f"{type(error).__name__}: {error}"), 0.0)
        finally:
            self._slots.release()

    def _deliver(self, due: DueCallback) -> None:
        try:
            record = self._outbox.ending(due)
        except JobNotFound:
            self._outbox.settle(due.webhook_id, "dropped", "the job is no longer in the ledger")
            return
        callback = record.job.callback
        if callback is None:
            self._outbox.settle(due.webhook_id, "dropped", "the job names no callback")
            return
        if due.is_news and record.state is not JobState.RUNNING:
            self._outbox.settle(due.webhook_id, "dropped", "overtaken by the job's end")
            return
        receiver, origin = host_of(callback.url), Origin.of(record.job)
        with self._receivers.turn(receiver) as is_given:
            if not is_given:
                self._postpone(due, self._receivers.silent_seconds(receiver))
                return
            body = self._body(due, record)
            started = time.monotonic()
            with self._exchange() as exchange:
                reply = self._post(callback.url, due.webhook_id, body, origin)
            if exchange.is_left and reply.status == 0:
                self._outbox.postpone(due.webhook_id, 0)
                return
        self._receivers.note(receiver, is_silent=reply.status == 0)
        self._settle(due, reply, time.monotonic() - started, origin)

    def _body(self, due: DueCallback, record: JobRecord) -> bytes:
        if not due.is_news:
            return record.event().body()
        return record.news(due.event, datetime.fromtimestamp(self._ledger.now_us() / MICROSECONDS, UTC)).body()

    @contextmanager
    def _exchange(self) -> Iterator[Transfer]:
        exchange = Transfer()
        self._exchanges.add(exchange)
        if self._is_closed.is_set():  # it began after `close` had looked
            exchange.leave()
        try:
            with exchange.under_way():
                yield exchange
        finally:
            self._exchanges.discard(exchange)

    def _postpone(self, due: DueCallback, silent_seconds: float) -> None:
        if due.is_news:
            self._outbox.settle(due.webhook_id, "dropped", "the receiver is silent")
            return
        pause = pause_of_postponed(silent_seconds, self._outbox.length())
        self._outbox.postpone(due.webhook_id, pause * self._jitter(0.8, 1.2))

    def _settle(self, due: DueCallback, reply: Reply, seconds: float, origin: Origin = NOWHERE) -> None:
        if due.is_news:
            self._outbox.settle(due.webhook_id, "delivered", reply.said)
            self._events.send(NewsTold(due.job_id, due.event, reply.said, seconds))
            return
        verdict, delay = judge(reply, due.attempts + 1, self._jitter)
        self._outbox.settle(due.webhook_id, verdict, reply.said, delay)
        kind = CallbackSettled if verdict == "delivered" else CallbackRetried
        self._events.send(kind(due.job_id, due.attempts + 1, reply.said, delay, verdict, seconds, origin))

    def _post(self, url: str, webhook_id: str, body: bytes, origin: Origin) -> Reply:
        # Receivers refuse a time that is minutes off: it is that of Redis, since this machine's clock may be wrong.
        timestamp = self._ledger.now_us() // MICROSECONDS
        headers = callback_headers(self._signing.of(url), webhook_id, timestamp, body)
        if origin.traceparent:
            headers["traceparent"] = origin.traceparent
        try:
            # The answer's body is not read: a receiver could send without end.
            with self._client.stream("POST", url, content=body, headers=headers) as response:
                retry_after = _retry_after(response.headers.get("retry-after"))
                return Reply(response.status_code, f"HTTP {response.status_code}", retry_after)
        except EditFailure as failure:
            return Reply(0, failure.message, is_refused=not failure.retryable)
        except Exception as error:  # whatever a transport raises, the attempt has failed and is tried again
            return Reply(0, one_line(hide_secrets(f"{type(error).__name__}: {error}"), 200))


def pause_of_postponed(silent_seconds: float, pending: int) -> float:
    """Seconds, before jitter, until a callback whose receiver is silent is looked at again.

    Args:
        silent_seconds: for how long the receiver has not answered.
        pending: callbacks in the outbox.
    """
    shortest, longest = POSTPONED_SECONDS
    return max(min(max(shortest, silent_seconds / SILENCE_PER_PAUSE), longest), pending / LOOKS_PER_SECOND)


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
    except (ValueError, OverflowError):  # no date, or none that this machine can count
        return None
