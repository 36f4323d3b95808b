"""The callbacks that are under way or were given up, for people who look after them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, cast

from jobs.connection import redis_errors
from jobs.ledger import PIPELINE_LENGTH, Ledger
from jobs.record import CallbackState


@dataclass(frozen=True)
class OutboxEntry:
    """One callback: the end it tells of, how it stands, and what the receiver said last."""

    webhook_id: str
    job_id: str
    event: str
    state: CallbackState
    attempts: int
    said: str
    tried_at: datetime | None
    due_at: datetime | None


class Outbox:
    """Reads callbacks in pages; every method raises `BrokerUnavailable` when Redis does not answer."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def pending(self) -> Iterator[OutboxEntry]:
        """The callbacks under way, the one that is due next first."""
        return self._entries(self._index("outbox"))

    def dropped(self) -> Iterator[OutboxEntry]:
        """The callbacks that were given up within the ledger's retention, oldest first."""
        return self._entries(self._index("dropped"))

    def of_jobs(self, job_ids: Iterable[str]) -> Iterator[OutboxEntry]:
        """The callbacks of the latest ends of these jobs."""
        return self._entries(self._of_jobs(job_ids))

    def _index(self, name: Literal["outbox", "dropped"]) -> Iterator[str]:
        start = 0
        while True:
            with redis_errors(self._ledger.redis):
                key = f"{self._ledger.prefix}{name}"
                page = cast("list[str]", self._ledger.redis.zrange(key, start, start + PIPELINE_LENGTH - 1))
            yield from page
            if len(page) < PIPELINE_LENGTH:
                return
            start += PIPELINE_LENGTH

    def _of_jobs(self, job_ids: Iterable[str]) -> Iterator[str]:
        remaining = iter(job_ids)
        while page := list(islice(remaining, PIPELINE_LENGTH)):
            records = self._ledger.get_many(page)
            yield from (record.webhook_id for record in records if record and record.webhook_id)

    def _entries(self, webhook_ids: Iterator[str]) -> Iterator[OutboxEntry]:
        while page := list(islice(webhook_ids, PIPELINE_LENGTH)):
            yield from self._read(page)

    def _read(self, webhook_ids: Sequence[str]) -> Iterator[OutboxEntry]:
        with redis_errors(self._ledger.redis), self._ledger.redis.pipeline(transaction=False) as pipeline:
            for webhook_id in webhook_ids:
                pipeline.hgetall(f"{self._ledger.prefix}callback:{webhook_id}")
                pipeline.zscore(f"{self._ledger.prefix}outbox", webhook_id)
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
                    _moment(fields.get("tried_at")),
                    _moment(due),
                )


def _moment(microseconds: str | float | None) -> datetime | None:
    return datetime.fromtimestamp(float(microseconds) / 1e6, UTC) if microseconds else None
