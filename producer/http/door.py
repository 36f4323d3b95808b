"""What the door does with jobs, whatever form they come in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from jobs.errors import BrokerUnavailable, JobNotFound
from jobs.ledger import JobRecord
from jobs.schema import JobState, parse_job
from producer.async_client import AsyncClient
from producer.following import Following
from producer.http.access import Access
from producer.http.faults import not_found
from producer.http.intake import GivenImage, Intake
from producer.http.keys import Caller
from producer.http.settings import HttpSettings
from producer.http.views import EditView
from producer.waiting import describe
from storage import Storage

LONGEST_WAIT_SECONDS = 600.0
UPLOADS_AT_ONCE = 8
AWAY_SECONDS = 0.5
NO_IMAGE_YET = "data:,"


@dataclass
class Door:
    """Everything that a request needs; one for the process.

    `is_closing` ends the waits of callers when the process is to stop; `uploads` bounds the inputs taken at once.
    """

    settings: HttpSettings
    client: AsyncClient
    storage: Storage
    is_closing: bool = False
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_AT_ONCE))

    def __post_init__(self) -> None:
        self.intake = Intake(self.settings, self.storage)
        self.access = Access(self.settings, self.client.client.ledger)

    def enter(self, request: Request) -> Caller:
        """Whoever sends a request, once origin and key are checked."""
        self.access.check_origin(request)
        return self.access.caller(request)

    async def accept(self, caller: Caller, raw_jobs: Sequence[dict[str, Any]], images: Sequence[GivenImage]) -> None:
        """Queue jobs of a caller that have the same inputs: all of them or none.

        What can be wrong with the jobs themselves is told before their inputs are fetched and stored.

        Args:
            raw_jobs: their fields, without `image`.
        Raises:
            RejectJob, HttpFault: a job or an input that cannot be taken.
            JobConflict, QueueFull: as `Client.submit_together`.
        """
        drafts = [parse_job({**raw, "image": NO_IMAGE_YET}) for raw in raw_jobs]
        drafts = [await self.client.run(self.intake.admit, draft, caller) for draft in drafts]
        await self.client.run(self.access.spend, caller, len(drafts))
        async with self.uploads:
            uris = await self.client.run(self.intake.place, images, caller)
        jobs = [draft.model_copy(update={"image": tuple(uris)}) for draft in drafts]
        await self.client.submit_together([parse_job(job.model_dump(mode="json", exclude_unset=True)) for job in jobs])

    async def find(self, caller: Caller, job_id: str) -> JobRecord:
        """A job of this caller, by its id or by the Idempotency-Key that it was sent with.

        Raises:
            HttpFault: 404, also for the job of another caller.
        """
        ids = list(dict.fromkeys([job_id, caller.own(job_id)]))
        for record in await self.client.run(self.client.client.ledger.get_many, ids):
            if record is not None and caller.tenant in (None, record.job.tenant):
                return record
        raise not_found(job_id)

    async def wait(self, request: Request, job_ids: Sequence[str], seconds: float) -> list[JobRecord]:
        """The jobs once all have ended, or as they are after `seconds`, when the caller leaves or the door closes."""
        following = Following(min(seconds, LONGEST_WAIT_SECONDS))
        while True:
            records = await self._look(job_ids)
            open_one = next((record for record in records if not record.state.is_terminal), None)
            if open_one is None or self.is_closing or await request.is_disconnected():
                return records
            try:
                await asyncio.sleep(following.pause(open_one))
            except TimeoutError:
                return records

    async def _look(self, job_ids: Sequence[str]) -> list[JobRecord]:
        found = await self.client.run(self.client.client.ledger.get_many, job_ids)
        for job_id, record in zip(job_ids, found, strict=True):
            if record is None:
                raise JobNotFound(f"no job {job_id!r} in the ledger")
        return [record for record in found if record is not None]

    async def view(self, request: Request, record: JobRecord) -> EditView:
        """A job as its caller sees it."""
        more: dict[str, Any] = {}
        if record.state is JobState.QUEUED:
            more["position"] = await self.client.run(self.client.client.ledger.position, record.job.id)
            _, more["waiting"] = await self.client.run(describe, record, self.client.client)
        if record.state is JobState.SUCCEEDED:
            more["image_url"] = await self.client.run(self.access.image_link, self.base(request), record.job.id)
        return EditView.of(record, **more)

    async def follow(self, request: Request, record: JobRecord) -> AsyncIterator[EditView | None]:
        """A job at every change until it has ended; None when a look has brought nothing new, or Redis is away."""
        following, shown = Following(closely=True), None
        while not self.is_closing:
            try:
                (record,) = await self._look([record.job.id])
                view = await self.view(request, record)
            except BrokerUnavailable:
                yield None
                await asyncio.sleep(AWAY_SECONDS)
                continue
            is_news = following.is_news(record) or view != shown
            shown = view
            yield view if is_news else None
            if record.state.is_terminal:
                return
            await asyncio.sleep(following.pause(record))

    def base(self, request: Request) -> str:
        """Address of the door, without a slash at its end."""
        return self.settings.http_url or f"{request.url.scheme}://{request.headers.get('host', 'localhost')}"
