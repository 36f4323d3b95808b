"""`make chaos`: hundreds of jobs under random faults, then a look from outside at what the promises say.

    python -m tests.chaos.soak [--minutes 5] [--seed N]

The seed decides which jobs are sent and which faults meet them; when exactly they meet is the machine's. Prints a
summary as JSON. When a promise is broken it prints the life of each job concerned, and the exit code is 1.

As root the health files lie on a small disk of their own, which one of the faults fills.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

from jobs.errors import BrokerUnavailable, JobNotFound
from jobs.ledger import JobRecord
from jobs.queue import count_messages
from tests.chaos.bench import Bench, running_bench
from tests.chaos.expected import Expected
from tests.chaos.fairness import IdleWatch, Probes, overtaken
from tests.chaos.faults import FAULTS
from tests.chaos.invariants import Received, broken_promises, wait_until_settled
from tests.chaos.kinds import STALL_SECONDS, backlog, draw, send
from tests.chaos.narrow import small_disk
from tests.chaos.tables import submit_and_hang_up
from tests.chaos.timeline import Timeline
from tests.isolation import isolate_environment
from tests.servers.http import running_http
from tests.servers.redis import running_redis
from tests.servers.s3 import running_s3
from tests.waiting import eventually

WORKERS = {"w1": "steady", "w2": "newer", "w3": "newer"}
"""Names and engines: a rolling upgrade that is never over."""

THREADS = 6
STEP_SECONDS = "0.05"
JOBS_PER_SECOND = 1.0
TWICE = 0.1
BACKLOGS = 0.01
"""Shares of the jobs that are submitted twice, or together with a table of `BACKLOG_JOBS`."""

BACKLOG_JOBS = 30
TABLES_EVERY_SECONDS = 20.0
SETTLE_SECONDS = 600
"""At most, on a machine that does other things too."""

RUNTIME_BYTES = 128 * 1024
FAULT_SECONDS = (0.1, 6.0)
"""Up to twice the lease of the bench."""

CALM_SECONDS = 1.5
LOOK_SECONDS = 0.25


@dataclass
class Soak:
    """One run: who sends, who breaks, who starts dead workers again, who watches, and what they did."""

    bench: Bench
    seed: int
    timeline: Timeline
    jobs: dict[str, Expected] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    active: tuple[str, ...] = ()
    restarts: int = 0
    refused: int = 0
    said: list[str] = field(default_factory=list)
    over: Event = field(default_factory=Event)

    def __post_init__(self) -> None:
        self.watch = IdleWatch(self.bench, THREADS)
        self.probes = Probes(self.bench)

    def run(self, seconds: float) -> list[str]:
        """Break things for so long, let everything end, and return the broken promises."""
        for name in WORKERS:
            self.start_worker(name)
        for worker in self.bench.workers.values():
            worker.wait_until_logged("worker_takes_jobs")
        received = Received(self.bench)
        with self._thread(self.keep_workers), self._thread(received.collect), self._thread(self.look):
            with self._thread(self.send_jobs(Random(self.seed))), self._thread(self.send_tables(Random(self.seed))):
                self.break_things(time.monotonic() + seconds)
            self.timeline.note("all faults are over, no more jobs")
            with suppress(AssertionError):  # what is still open then is found below, by its name
                wait_until_settled(self.bench, SETTLE_SECONDS)
                eventually(lambda: not count_messages(self.bench.ledger.redis), SETTLE_SECONDS)
        self.bench.stop_workers()
        self.jobs |= self.bench.sent
        found = [*broken_promises(self.bench, self.jobs, received), *overtaken(self.records())]
        return [*found, *self.watch.said.values(), *self.probes.said.values(), *self.said]

    def records(self) -> list[JobRecord]:
        return [record for record in self.bench.ledger.get_many(list(self.jobs)) if record is not None]

    def start_worker(self, name: str) -> None:
        self.bench.begin_worker(name, DG_FLUX_KONTEXT_ENGINE=f"tests.chaos.engines:{WORKERS[name]}")

    def break_things(self, deadline: float) -> None:
        """One or two faults at a time, on different things, with a calm between."""
        while time.monotonic() < deadline:
            first, second = self.bench.random.sample(sorted(FAULTS), 2)
            names = (first,) if subject(first) == subject(second) else (first, second)
            self.active = names
            with ExitStack() as stack:
                for name in names:
                    self.timeline.note(f"fault {name}")
                    self.faults[name] += 1
                    stack.enter_context(FAULTS[name](self.bench))
                time.sleep(self.bench.random.uniform(*FAULT_SECONDS))
            self.active = ()
            self.timeline.note(f"over {' and '.join(names)}")
            time.sleep(self.bench.random.uniform(0, CALM_SECONDS))

    def send_jobs(self, random: Random) -> Callable[[], None]:
        """Send one job of a random kind, now and then one twice or many at once; cancel those that are to be."""

        def send_one() -> None:
            time.sleep(random.expovariate(JOBS_PER_SECOND))
            kind, job, self.jobs[job.id] = draw(self.bench, random, len(self.jobs))
            for _ in range(2 if random.random() < TWICE else 1):
                self._until_accepted(lambda: send(self.bench, kind, job))
            if kind.endswith("cancelled"):
                time.sleep(random.uniform(0, 0.5))
                self._until_accepted(lambda: self.bench.ledger.cancel(job.id))
            if random.random() < BACKLOGS:
                self.send_backlog(random)

        return send_one

    def send_backlog(self, random: Random) -> None:
        made = backlog(self.bench, random, f"table-{len(self.jobs)}", BACKLOG_JOBS)
        self.jobs |= {job.id: expected for job, expected in made}
        self._until_accepted(lambda: list(self.bench.client.submit_many(job for job, _ in made)))

    def send_tables(self, random: Random) -> Callable[[], None]:
        """Send a table by the command line, whose terminal goes away."""

        def send_one() -> None:
            if self.over.wait(random.expovariate(1 / TABLES_EVERY_SECONDS)):
                return
            name = f"hangup-{len(self.jobs)}"
            try:
                self.jobs |= submit_and_hang_up(self.bench, random, name)
            except AssertionError as error:
                self.said.append(str(error))

        return send_one

    def keep_workers(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for name, worker in list(self.bench.workers.items()):
            code = worker.process.poll()
            if code is not None and not self.over.is_set():
                if not is_expected(code, worker.log):
                    self.said.append(f"worker {name}: ended by itself with {code}: {worker.log[-300:]}")
                self.timeline.keep_log(worker)
                self.timeline.note(f"{name} ended with {code} and is started again")
                self.start_worker(name)
                self.restarts += 1
        time.sleep(0.2)

    def look(self) -> None:
        """Watch from beside whether anybody waits for nothing."""
        self.watch.look(is_redis_well=all(subject(name) != "redis" for name in self.active))
        self.probes.ask()
        time.sleep(LOOK_SECONDS)

    def _until_accepted(self, call: Callable[[], object]) -> None:
        """Repeat what Redis refused, as the error tells a client to."""
        while True:
            try:
                call()
                return
            except (BrokerUnavailable, JobNotFound):
                self.refused += 1
                time.sleep(0.2)

    @contextmanager
    def _thread(self, work: Callable[[], None]) -> Iterator[None]:
        """Do `work` again and again until the block is left."""
        leave = Event()

        def loop() -> None:
            while not leave.is_set():
                work()
                leave.wait(0.01)

        thread = Thread(target=loop, name=work.__name__)
        thread.start()
        try:
            yield
        finally:
            leave.set()
            thread.join()


def is_expected(code: int, log: str) -> bool:
    """True for an end by SIGTERM, SIGKILL or poison. A worker that ends otherwise has given up by itself."""
    listened = "worker_takes_jobs" in log and "worker_stopped" not in log
    return code in (0, -signal.SIGKILL) or (code == -signal.SIGTERM and not listened)


def subject(fault: str) -> str:
    """What a fault hits: two at a time must hit different things."""
    first = fault.partition("_")[0]
    return "redis" if first in ("connections", "message", "messages", "line") else first


def summary(soak: Soak, seconds: float, broken: list[str]) -> dict[str, Any]:
    found = soak.records()
    lasted = [record.seconds for record in found if record.seconds is not None]
    callbacks = [request.headers["webhook-id"] for request in soak.bench.receiver.requests("/hook")]
    return {
        "seed": soak.seed,
        "seconds": round(seconds),
        "jobs": len(soak.jobs),
        "states": dict(Counter(str(record.state) for record in found)),
        "attempts": dict(sorted(Counter(record.attempts for record in found).items())),
        "spent": sum(record.state not in soak.jobs[record.job.id].states for record in found),
        "seconds_from_submit_to_end": {
            "median": round(statistics.median(lasted), 2),
            "p95": round(statistics.quantiles(lasted, n=20)[-1], 2),
            "longest": round(max(lasted), 2),
        },
        "faults": dict(sorted(soak.faults.items())),
        "moments_judged_for_idleness": soak.watch.looks,
        "workers_started_again": soak.restarts,
        "calls_repeated_by_clients": soak.refused,
        "callbacks": {"received": len(callbacks), "different": len(set(callbacks))},
        "broken_promises": broken,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    isolate_environment()
    began_at = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        redis_folder, s3_folder = folder / "redis", folder / "s3"
        if os.geteuid() == 0:
            stack.enter_context(small_disk(folder / "runtime", RUNTIME_BYTES)).chmod(0o700)
        redis_folder.mkdir()
        s3_folder.mkdir()
        redis, s3 = stack.enter_context(running_redis(redis_folder)), stack.enter_context(running_s3(s3_folder))
        receiver = stack.enter_context(running_http())
        bench = stack.enter_context(running_bench(folder, redis, s3, receiver, options.seed))
        bench.environment.update({"STANDIN_STEP_SECONDS": STEP_SECONDS, "DG_INPUT_STALL_SECONDS": STALL_SECONDS})
        soak = Soak(bench, options.seed, Timeline(bench))
        broken = soak.run(60 * options.minutes)
        sys.stdout.write(json.dumps(summary(soak, time.monotonic() - began_at, broken), indent=2) + "\n")
        for job_id in soak.timeline.concerned(broken, soak.jobs):
            sys.stderr.write(soak.timeline.of(job_id) + "\n")
        return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
