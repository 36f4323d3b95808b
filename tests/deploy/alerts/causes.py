"""What wakes somebody: a cause for each alert, made in the `with` block and undone when the block is left."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from jobs.queue import QUEUE
from tests.chaos.narrow import fill
from tests.deploy.alerts.site import HOOK, WORKERS, Site
from tests.servers.http import Answer
from tests.waiting import eventually


@dataclass(frozen=True)
class Cause:
    """How an alert comes about."""

    alert: str
    words: str
    make: Callable[[Site], AbstractContextManager[None]]
    needs_root: bool = False


CAUSES: list[Cause] = []


def cause(
    alert: str, words: str, needs_root: bool = False
) -> Callable[[Callable[[Site], Iterator[None]]], Callable[[Site], AbstractContextManager[None]]]:
    """Enter in `CAUSES` what happens before and after `yield`."""

    def enter(act: Callable[[Site], Iterator[None]]) -> Callable[[Site], AbstractContextManager[None]]:
        make = contextmanager(act)
        CAUSES.append(Cause(alert, words, make, needs_root))
        return make

    return enter


@cause("KontextQueueTooOld", "more jobs than two workers can do")
def too_many_jobs(site: Site) -> Iterator[None]:
    site.submit("flood", 60, steps=100)
    yield
    site.client.cancel_batch("flood")


@cause("KontextNoReadyWorker", "all workers are killed, and a job is submitted")
def no_worker(site: Site) -> Iterator[None]:
    site.kill(*WORKERS)
    site.submit("lonely", 1)
    yield
    site.start(*WORKERS)


@cause("KontextJobsFail", "a table whose images are missing")
def missing_images(site: Site) -> Iterator[None]:
    site.submit("wrong", 60, every=2, bad=f"{site.image}.missing")
    yield


@cause("KontextOneErrorDominates", "one image in thirteen is missing")
def some_missing_images(site: Site) -> Iterator[None]:
    site.submit("mixed", 520, every=13, bad=f"{site.image}.missing")
    yield
    site.client.cancel_batch("mixed")


@cause("KontextCallbacksStuck", "a receiver is away, then all who send are killed")
def nobody_sends(site: Site) -> Iterator[None]:
    site.receiver.answer(HOOK, Answer(503))
    site.submit("stuck", 1, callback={"url": site.receiver.url(HOOK)})
    eventually(lambda: site.receiver.requests(HOOK), what="the first try of the callback")
    site.kill(*WORKERS, "callbacks")
    yield
    site.receiver.answer(HOOK, Answer(204))
    site.start(*WORKERS, "callbacks")


@cause("KontextCallbacksDropped", "a receiver answers 410")
def receiver_gone(site: Site) -> Iterator[None]:
    site.receiver.answer(HOOK, Answer(410))
    site.submit("gone", 1, callback={"url": site.receiver.url(HOOK)})
    yield
    site.receiver.answer(HOOK, Answer(204))


@cause("KontextLeasesExpire", "a worker with several jobs under way is killed")
def worker_killed(site: Site) -> Iterator[None]:
    slow = site.receiver.answer("/slow.png", Answer(delay_seconds=20))
    site.kill(WORKERS[1])  # so that the other has all of them
    site.submit("orphans", 6, image=slow)
    eventually(lambda: len(site.receiver.requests("/slow.png")) >= 6, what="six jobs under way")
    site.kill(WORKERS[0])
    site.receiver.answer("/slow.png", Answer(404))
    site.start(*WORKERS)
    yield


@cause("KontextRunsOutOfMemory", "jobs that fit into the device only with offload")
def tight_memory(site: Site) -> Iterator[None]:
    site.submit("large", 16, prompt="need much memory")
    yield


@cause("KontextDeadLetters", "somebody else's messages in the queue")
def strange_messages(site: Site) -> Iterator[None]:
    with site.redis.client() as client:
        client.rpush(QUEUE, "no job", "{}")
    yield


@cause("KontextRedisAway", "Redis is killed")
def redis_killed(site: Site) -> Iterator[None]:
    site.redis.kill()
    yield
    site.redis.start()


@cause("KontextRedisAway", "Redis hangs")
def redis_hangs(site: Site) -> Iterator[None]:
    site.redis.pause()
    yield
    site.redis.resume()


@cause("KontextRedisMemory", "Redis has a tenth more memory than it uses")
def redis_nearly_full(site: Site) -> Iterator[None]:
    with site.redis.client() as client:
        client.config_set("maxmemory", int(client.info()["used_memory"] * 1.1))
        yield
        client.config_set("maxmemory", 0)


@cause("KontextRedisCannotWrite", "the disk of Redis is full", needs_root=True)
def full_disk(site: Site) -> Iterator[None]:
    filler = site.redis.folder / "filler"
    fill(filler)
    with site.redis.client() as client:
        client.set("a write", "for the append-only file")
    yield
    filler.unlink()


@cause("KontextNotScraped", "the exporter is killed")
def exporter_killed(site: Site) -> Iterator[None]:
    site.kill("exporter")
    yield
    site.start("exporter")


@cause("KontextNotScraped", "a worker hangs as a whole")
def worker_hangs(site: Site) -> Iterator[None]:
    worker = site.daemons[WORKERS[1]].process
    worker.send_signal(signal.SIGSTOP)
    yield
    worker.send_signal(signal.SIGCONT)
