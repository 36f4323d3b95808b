"""The outbox: the callbacks of ended jobs, for the sender that delivers them and for people who operate it.

A job's end and its entry here are one change of the ledger (`jobs/ledger/lua/common.lua`, `finish`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, cast

from jobs.connection import redis_errors
from jobs.errors import JobNotFound
from jobs.ledger.reading import JobReading
from jobs.ledger.record import CallbackState, JobRecord, parse_record
from jobs.ledger.scripts import MICROSECONDS, PIPELINE_LENGTH, chunks
from jobs.schema import NEWS

Verdict = CallbackState


@dataclass(frozen=True)
class OutboxEntry:
    """One callback: the end it reports, its state, and the receiver's last answer."""

    webhook_id: str
    job_id: str
    event: str
    state: CallbackState
    attempts: int
    said: str
    tried_at: datetime | None
    due_at: datetime | None


@dataclass(frozen=True)
class DueCallback:
    """A callback that is due; `webhook_id` stays the same over all its attempts."""

    webhook_id: str
    job_id: str
    event: str
    attempts: int

    @property
    def is_news(self) -> bool:
        """True for news of a running job, which are tried once."""
        return self.event in NEWS


class Outbox:
    """Reads and changes callbacks; every method raises `BrokerError` when Redis does not answer or refuses."""

    def __init__(self, jobs: JobReading) -> None:
        self._jobs = jobs
        self._scripts = jobs.scripts

    # For the sender

    def take(self, limit: int, hide_seconds: float) -> list[DueCallback]:
        """Take callbacks that are due; each is due again after `hide_seconds` unless it is settled."""
        rows = self._scripts.run("take_callbacks", limit, int(hide_seconds * MICROSECONDS))
        return [DueCallback(webhook_id, job_id, event, int(attempts)) for webhook_id, job_id, event, attempts in rows]

    def ending(self, due: DueCallback) -> JobRecord:
        """Read the job as it was at the end that the callback reports, even if it was retried since.

        Raises:
            JobNotFound: the job is no longer in the ledger.
        """
        redis = self._scripts.redis
        with redis_errors(redis), redis.pipeline(transaction=False) as pipeline:
            # In this order: a retry between the two leaves either the ended record or its ending, never neither.
            pipeline.hgetall(self._scripts.key("job", due.job_id))
            pipeline.hget(self._scripts.key("callback", due.webhook_id), "ending")
            fields, ending = pipeline.execute()
        if "job" not in fields:
            raise JobNotFound(f"no job {due.job_id!r} in the ledger")
        return parse_record(due.job_id, {**fields, **(json.loads(ending) if ending else {})})

    def length(self) -> int:
        """How many callbacks are pending."""
        with redis_errors(self._scripts.redis):
            return self._scripts.redis.zcard(self._scripts.key("outbox"))

    def postpone(self, webhook_id: str, delay_seconds: float) -> None:
        """Make a taken callback due again after the delay, without counting an attempt."""
        due_us = self._scripts.now_us() + int(delay_seconds * MICROSECONDS)
        with redis_errors(self._scripts.redis):
            self._scripts.redis.zadd(self._scripts.key("outbox"), {webhook_id: due_us}, xx=True)

    def settle(self, webhook_id: str, verdict: Verdict, said: str, delay_seconds: float = 0) -> None:
        """Record an attempt's result: `delivered`, `dropped`, or `pending` and tried again after the delay.

        News of a running job are forgotten, whatever became of them.
        """
        self._scripts.run("settle_callback", webhook_id, verdict, int(delay_seconds * MICROSECONDS), said[:200])

    # For people

    def replay(self, webhook_ids: Iterable[str]) -> int:
        """Send callbacks again from their first attempt, whatever their state; returns how many exist."""
        return self._revise(webhook_ids, "pending")

    def drop(self, webhook_ids: Iterable[str]) -> int:
        """Drop pending callbacks; returns how many were pending."""
        return self._revise(webhook_ids, "dropped")

    def pending(self) -> Iterator[OutboxEntry]:
        """The pending callbacks, the next one due first."""
        return self._entries(self._index("outbox"))

    def dropped(self) -> Iterator[OutboxEntry]:
        """The callbacks dropped within the ledger's retention, oldest first."""
        return self._entries(self._index("dropped"))

    def of_jobs(self, job_ids: Iterable[str]) -> Iterator[OutboxEntry]:
        """The callbacks of the latest ends of these jobs."""
        return self._entries(self._of_jobs(job_ids))

    def _revise(self, webhook_ids: Iterable[str], verdict: Verdict) -> int:
        count = 0
        for page in chunks(webhook_ids, PIPELINE_LENGTH):
            before = self._scripts.run_many("revise_callback", [[webhook_id, verdict] for webhook_id in page])
            count += sum(state == "pending" if verdict == "dropped" else bool(state) for state in before)
        return count

    def _index(self, name: Literal["outbox", "dropped"]) -> Iterator[str]:
        start = 0
        while True:
            with redis_errors(self._scripts.redis):
                key = self._scripts.key(name)
                page = cast("list[str]", self._scripts.redis.zrange(key, start, start + PIPELINE_LENGTH - 1))
            yield from page
            if len(page) < PIPELINE_LENGTH:
                return
            start += PIPELINE_LENGTH

    def _of_jobs(self, job_ids: Iterable[str]) -> Iterator[str]:
        for page in chunks(job_ids, PIPELINE_LENGTH):
            records = self._jobs.get_many(page)
            yield from (record.webhook_id for record in records if record and record.webhook_id)

    def _entries(self, webhook_ids: Iterator[str]) -> Iterator[OutboxEntry]:
        for page in chunks(webhook_ids, PIPELINE_LENGTH):
            yield from self._read(page)

    def _read(self, webhook_ids: Sequence[str]) -> Iterator[OutboxEntry]:
        with redis_errors(self._scripts.redis), self._scripts.redis.pipeline(transaction=False) as pipeline:
            for webhook_id in webhook_ids:
                pipeline.hgetall(self._scripts.key("callback", webhook_id))
                pipeline.zscore(self._scripts.key("outbox"), webhook_id)
            answers = pipeline.execute()
        for webhook_id, fields, due in zip(webhook_ids, answers[::2], answers[1::2], strict=True):
            if fields:
                yield OutboxEntry(
                    webhook_id,
                    fields["job"],
                    fields["event"],
                    fields["state"],
                    int(fields["attempts"]),
                    fields.get("said", ""),
                    _time(fields.get("tried_at")),
                    _time(due),
                )


def _time(microseconds: str | float | None) -> datetime | None:
    return datetime.fromtimestamp(float(microseconds) / 1e6, UTC) if microseconds else None
