"""The client for services that run on asyncio: the methods of `Client`, to be awaited.

async with AsyncClient() as client:
    job_id = await client.submit(EditJob(image="s3://photos/cat.png", prompt="make it snow"))
    async for record in client.events(job_id):
        print(record.state, record.progress)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, TypeVar

from jobs.errors import ErrorCode
from jobs.ledger import JobRecord, Submission
from jobs.schema import EditJob, EditResult, JobState
from jobs.settings import BrokerSettings
from producer.client import Client
from producer.following import Following

THREADS = 16
"""Calls of Redis at the same time; each lasts about a millisecond, and ten seconds when Redis hangs."""

P = ParamSpec("P")
T = TypeVar("T")


class AsyncClient:
    """Talks to the ledger and the queue from an event loop, which it never blocks.

    Calls of Redis run in threads of its own, so a Redis that hangs takes none of the program's default threads. No
    thread is held between two looks: who waits for a job costs nothing but its looks.

    Args:
        broker_url: the Redis that the workers use; default: the setting, `DG_BROKER_URL`.
        settings: read from the environment when absent.

    Every method may raise `BrokerError`. A call that is cancelled may still be carried out.

    Attributes:
        client: the client that does the work, for whoever needs more than the methods give.
    """

    def __init__(self, broker_url: str | None = None, settings: BrokerSettings | None = None) -> None:
        self.client = Client(broker_url, settings)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kontext-client")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of threads and connections."""
        await self.run(self.client.ledger.redis.close)
        self._threads.shutdown(wait=False)

    async def run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Make a blocking call in one of the client's threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: call(*arguments, **named))

    async def submit(self, job: EditJob) -> str:
        """Queue one job and return its id; a job that is there already is left as it is.

        Raises:
            JobConflict: the id belongs to a job that asks for something else.
            QueueFull: as many jobs wait as may wait, in all or of this tenant.
        """
        return await self.run(self.client.submit, job)

    async def submit_together(self, jobs: Sequence[EditJob]) -> list[str]:
        """Queue a few jobs, all of them or none, and return their ids, as `Client.submit_together` does.

        Raises:
            JobConflict: one of the ids belongs to a job that asks for something else.
            QueueFull: as many jobs wait as may wait, in all or of this tenant.
        """
        return await self.run(self.client.submit_together, jobs)

    async def submit_many(self, jobs: Iterable[EditJob], wait_for_room: bool = False) -> AsyncIterator[Submission]:
        """Queue jobs as they come and tell what became of each, in order, as `Client.submit_many` does.

        Args:
            jobs: iterated in a thread, one chunk of jobs at a time.
            wait_for_room: instead of the verdicts `full` and `tenant_full`, wait until there is room.
        """
        steps = self.client.submission_steps(jobs, wait_for_room)
        while (step := await self.run(next, steps, None)) is not None:
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            for submission in step:
                yield submission

    async def get(self, job_id: str) -> JobRecord:
        """Everything that is known about a job.

        Raises:
            JobNotFound: no such job.
        """
        return await self.run(self.client.get, job_id)

    async def wait(self, job_id: str, timeout_seconds: float | None = None) -> EditResult:
        """Wait until a job has ended, for ever by default, and return how.

        Raises:
            JobNotFound: no such job.
            TimeoutError: it has not ended in time; it goes on, and may be waited for again.
        """
        following = Following(timeout_seconds)
        while not (record := await self.get(job_id)).state.is_terminal:
            await asyncio.sleep(following.pause(record))
        return record.result

    async def events(self, job_id: str, timeout_seconds: float | None = None) -> AsyncIterator[JobRecord]:
        """Follow a job: its record now, then at every change of state or progress; the last one has ended.

        Raises:
            JobNotFound: no such job.
            TimeoutError: it has not ended in time; it goes on.
        """
        following = Following(timeout_seconds, closely=True)
        while True:
            record = await self.get(job_id)
            if following.is_news(record):
                yield record
            if record.state.is_terminal:
                return
            await asyncio.sleep(following.pause(record))

    async def cancel(self, job_id: str) -> JobState:
        """Cancel a job and return its state before, as `Client.cancel` does.

        Raises:
            JobNotFound: no such job.
        """
        return await self.run(self.client.cancel, job_id)

    async def cancel_batch(self, batch: str) -> dict[JobState, int]:
        """Cancel every job of a batch; returns how many were in which state before.

        Raises:
            JobNotFound: no such batch.
        """
        return await self.run(self.client.cancel_batch, batch)

    async def retry(self, job_id: str) -> JobState:
        """Queue a failed or cancelled job again and return its state before; any other job stays as it is.

        Raises:
            JobNotFound: no such job.
        """
        return await self.run(self.client.retry, job_id)

    async def retry_batch(self, batch: str, codes: Collection[ErrorCode] = ()) -> int:
        """Queue the failed jobs of a batch again; returns how many.

        Raises:
            JobNotFound: no such batch.
        """
        return await self.run(self.client.retry_batch, batch, codes)

    async def status(self, batch: str) -> dict[JobState, int]:
        """Number of jobs of a batch in each state.

        Raises:
            JobNotFound: no such batch.
        """
        return await self.run(self.client.status, batch)
