"""The client for services on asyncio: the same as `Client`, without blocking the loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest

from jobs.ledger import Claim, Progress
from jobs.schema import JobState, Outcome
from producer import AsyncClient, Client, JobConflict, JobNotFound, QueueFull
from tests.producer.conftest import finish, make_job
from tests.servers.redis import RedisServer

Run = Callable[[Callable[[AsyncClient], Awaitable[object]]], object]


@pytest.fixture
def run(redis_server: RedisServer) -> Run:
    """Runs a coroutine function on a client of its own."""

    def run(work: Callable[[AsyncClient], Awaitable[object]]) -> object:
        async def main() -> object:
            async with AsyncClient(redis_server.url) as client:
                return await work(client)

        return asyncio.run(main())

    return run


def test_it_has_the_methods_of_the_client() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}

    own = {"aclose", "run"}
    inner = {"submission_steps", "describe_full"}

    assert methods(AsyncClient) - own == methods(Client) - inner
    for name in methods(AsyncClient) - own:
        ours, theirs = (list(inspect.signature(getattr(kind, name)).parameters) for kind in (AsyncClient, Client))
        assert ours == theirs, name


def test_a_job_is_submitted_followed_and_waited_for(run: Run, client: Client) -> None:
    seen: list[tuple[JobState, Progress | None]] = []

    async def work(asynchronous: AsyncClient) -> None:
        await asynchronous.submit(make_job("one", params={"seed": 7}))
        async for record in asynchronous.events("one"):
            seen.append((record.state, record.progress))
            if record.state is JobState.QUEUED:
                claim = client.ledger.claim("one", "worker-1", 30)
                assert isinstance(claim, Claim)
            elif record.progress is None and not record.state.is_terminal:
                client.ledger.renew("one", claim.token, 30, Progress("sampling", 3, 30))
            elif record.progress is not None:
                client.ledger.finish("one", claim.token, JobState.SUCCEEDED, Outcome(output=claim.job.output))
        result = await asynchronous.wait("one")
        assert (result.state, result.seed) == (JobState.SUCCEEDED, 7)

    run(work)

    assert seen == [
        (JobState.QUEUED, None),
        (JobState.RUNNING, None),
        (JobState.RUNNING, Progress("sampling", 3, 30)),
        (JobState.SUCCEEDED, None),
    ]


def test_the_events_of_both_clients_are_the_same(client: Client) -> None:
    client.submit(make_job("one"))
    events = client.events("one")
    first = next(events)
    finish(client, "one")

    assert [first.state, *(record.state for record in events)] == [JobState.QUEUED, JobState.SUCCEEDED]
    with pytest.raises(StopIteration):
        next(events)


def test_following_too_long_is_a_timeout_and_leaves_the_job(run: Run, client: Client) -> None:
    client.submit(make_job("one"))

    async def work(asynchronous: AsyncClient) -> None:
        with pytest.raises(TimeoutError, match="still queued after"):
            await asynchronous.wait("one", timeout_seconds=0.01)
        with pytest.raises(TimeoutError, match="still queued after"):
            async for _ in asynchronous.events("one", timeout_seconds=0.01):
                pass

    run(work)

    assert client.get("one").state is JobState.QUEUED


def test_many_jobs_go_in_and_each_is_accounted_for(run: Run, client: Client) -> None:
    jobs = [make_job(f"job-{number}", batch="many") for number in range(1200)]

    async def work(asynchronous: AsyncClient) -> list[str]:
        return [submission.verdict async for submission in asynchronous.submit_many(jobs)]

    assert run(work) == ["created"] * 1200
    assert client.status("many")[JobState.QUEUED] == 1200


def test_a_wait_for_room_holds_no_thread_and_ends_with_its_task(redis_server: RedisServer, client: Client) -> None:
    settings = client.settings.model_copy(update={"max_queued": 1})

    async def main() -> None:
        async with AsyncClient(settings=settings) as asynchronous:
            await asynchronous.submit(make_job("first"))

            async def submit() -> None:
                async for _ in asynchronous.submit_many([make_job("second")], wait_for_room=True):
                    pass

            task = asyncio.create_task(submit())
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    finish(client, "first")

    assert client.ledger.get_many(["second"]) == [None]


def test_its_errors_are_those_of_the_client(run: Run, client: Client) -> None:
    client.submit(make_job("one"))

    async def work(asynchronous: AsyncClient) -> None:
        with pytest.raises(JobConflict):
            await asynchronous.submit(make_job("one", prompt="rain"))
        for ask in (asynchronous.get, asynchronous.wait, asynchronous.cancel, asynchronous.retry, asynchronous.status):
            with pytest.raises(JobNotFound, match="nowhere"):
                await ask("nowhere")

    run(work)


def test_jobs_are_cancelled_and_retried(run: Run, client: Client) -> None:
    async def work(asynchronous: AsyncClient) -> None:
        for name in ("one", "two"):
            await asynchronous.submit(make_job(name, batch="some"))
        assert await asynchronous.cancel("one") is JobState.QUEUED
        assert await asynchronous.retry("one") is JobState.CANCELLED
        assert (await asynchronous.cancel_batch("some"))[JobState.QUEUED] == 2
        assert await asynchronous.retry_batch("some", ["cancelled"]) == 2  # type: ignore[list-item]

    run(work)

    assert client.status("some")[JobState.QUEUED] == 2


def test_a_full_queue_is_told(redis_server: RedisServer) -> None:
    settings = Client(redis_server.url).settings.model_copy(update={"max_queued": 1})

    async def main() -> None:
        async with AsyncClient(settings=settings) as asynchronous:
            await asynchronous.submit(make_job("one"))
            with pytest.raises(QueueFull, match=r"queue full \(1 of 1\)"):
                await asynchronous.submit(make_job("two"))

    asyncio.run(main())
