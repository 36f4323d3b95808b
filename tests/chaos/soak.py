"""`make chaos`: hundreds of jobs under random faults, then a look from outside at what the promises say.

    python -m tests.chaos.soak [--minutes 5] [--seed N]

The seed decides which jobs are sent and which faults meet them; when exactly they meet is the machine's. Prints a
summary as JSON. When a promise is broken it prints the life of each job concerned, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
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
from jobs.schema import JobState
from tests.chaos.bench import Bench, running_bench
from tests.chaos.faults import FAULTS
from tests.chaos.invariants import Expected, Received, broken_promises, submit, wait_until_settled
from tests.chaos.timeline import Timeline
from tests.isolation import isolate_environment
from tests.servers.http import running_http
from tests.servers.redis import running_redis
from tests.servers.s3 import running_s3

WORKERS = ("w1", "w2", "w3")
STEP_SECONDS = "0.05"
JOBS_PER_SECOND = 1.2
SETTLE_SECONDS = 180
FAULT_SECONDS = (0.1, 6.0)
"""Up to twice the lease of the bench."""

CALM_SECONDS = 1.5

JOB_KINDS: dict[str, tuple[int, dict[str, Any], frozenset[JobState]]] = {
    # weight, fields, how it may end
    "ordinary": (80, {}, frozenset({JobState.SUCCEEDED})),
    "large": (6, {"prompt": "noise"}, frozenset({JobState.SUCCEEDED})),
    "cancelled": (8, {}, frozenset({JobState.SUCCEEDED, JobState.CANCELLED})),
    "raising": (4, {"prompt": "raise"}, frozenset({JobState.FAILED})),
    "poison": (2, {"prompt": "die"}, frozenset({JobState.FAILED})),
}


@dataclass
class Soak:
    """One run: who sends, who breaks, who starts dead workers again, and what they did."""

    bench: Bench
    seed: int
    timeline: Timeline
    jobs: dict[str, Expected] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    refused: int = 0
    over: Event = field(default_factory=Event)

    def run(self, seconds: float) -> list[str]:
        """Break things for so long, let everything end, and return the broken promises."""
        self.bench.start_workers(*WORKERS)
        received = Received(self.bench)
        with self._thread(self.keep_workers), self._thread(received.collect):
            with self._thread(self.send_jobs(Random(self.seed))):
                self.break_things(time.monotonic() + seconds)
            self.timeline.note("all faults are over, no more jobs")
            with suppress(AssertionError):  # what is still open then is found below, by its name
                wait_until_settled(self.bench, SETTLE_SECONDS)
        self.bench.stop_workers()
        return broken_promises(self.bench, self.jobs, received)

    def break_things(self, deadline: float) -> None:
        """One or two faults at a time, on different things, with a calm between."""
        while time.monotonic() < deadline:
            first, second = self.bench.random.sample(sorted(FAULTS), 2)
            names = [first] if subject(first) == subject(second) else [first, second]
            with ExitStack() as stack:
                for name in names:
                    self.timeline.note(f"fault {name}")
                    self.faults[name] += 1
                    stack.enter_context(FAULTS[name](self.bench))
                time.sleep(self.bench.random.uniform(*FAULT_SECONDS))
            self.timeline.note(f"over {' and '.join(names)}")
            time.sleep(self.bench.random.uniform(0, CALM_SECONDS))

    def send_jobs(self, random: Random) -> Callable[[], None]:
        """Send one job of a random kind, now and then one twice; cancel those that are to be cancelled."""

        def send() -> None:
            time.sleep(random.expovariate(JOBS_PER_SECOND))
            weights = [weight for weight, _, _ in JOB_KINDS.values()]
            kind = random.choices(list(JOB_KINDS), weights)[0]
            job_id, seed = f"{kind}-{len(self.jobs)}", random.randrange(2**16)
            fields = {**JOB_KINDS[kind][1], "params": {"num_inference_steps": random.randint(1, 12)}}
            if kind == "large":
                fields["params"] |= {"width": 768, "height": 768}
            if random.random() < 0.5:
                fields["output"] = self.bench.bucket_uri(f"{job_id}.png")
            self.jobs[job_id] = Expected(seed, JOB_KINDS[kind][2], may_be_spent=True)
            for _ in range(2 if random.random() < 0.1 else 1):
                self._until_accepted(lambda: submit(self.bench, job_id, seed, **fields))
            if kind == "cancelled":
                time.sleep(random.uniform(0, 0.5))
                self._until_accepted(lambda: self.bench.ledger.cancel(job_id))

        return send

    def keep_workers(self) -> None:
        """Start again what has ended, as a supervisor does."""
        for name, worker in list(self.bench.workers.items()):
            if worker.process.poll() is not None and not self.over.is_set():
                self.timeline.keep_log(worker)
                self.timeline.note(f"{name} ended with {worker.process.returncode} and is started again")
                self.bench.begin_worker(name)
                self.restarts += 1
        time.sleep(0.2)

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


def subject(fault: str) -> str:
    """What a fault hits: two at a time must hit different things."""
    first = fault.partition("_")[0]
    return "redis" if first in ("connections", "message", "messages", "line") else first


def summary(soak: Soak, seconds: float, broken: list[str]) -> dict[str, Any]:
    found = [record for record in soak.bench.ledger.get_many(list(soak.jobs)) if record is not None]
    lasted = [record.seconds for record in found if record.seconds is not None]
    callbacks = [request.headers["webhook-id"] for request in soak.bench.receiver.requests("/hook")]
    return {
        "seed": soak.seed,
        "seconds": round(seconds),
        "jobs": len(soak.jobs),
        "states": dict(Counter(str(record.state) for record in found)),
        "attempts": dict(sorted(Counter(record.attempts for record in found).items())),
        "spent": sum(is_spent(record) for record in found),
        "seconds_from_submit_to_end": {
            "median": round(statistics.median(lasted), 2),
            "p95": round(statistics.quantiles(lasted, n=20)[-1], 2),
            "longest": round(max(lasted), 2),
        },
        "faults": dict(sorted(soak.faults.items())),
        "workers_started_again": soak.restarts,
        "calls_repeated_by_clients": soak.refused,
        "callbacks": {"received": len(callbacks), "different": len(set(callbacks))},
        "broken_promises": broken,
    }


def is_spent(record: JobRecord) -> bool:
    """Whether faults, and not the job itself, used up its attempts."""
    error = record.outcome.error
    return error is not None and error.retryable and not record.job.id.startswith(("raising", "poison"))


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
        redis_folder.mkdir()
        s3_folder.mkdir()
        redis, s3 = stack.enter_context(running_redis(redis_folder)), stack.enter_context(running_s3(s3_folder))
        receiver = stack.enter_context(running_http())
        bench = stack.enter_context(running_bench(folder, redis, s3, receiver, options.seed))
        bench.environment["STANDIN_STEP_SECONDS"] = STEP_SECONDS
        soak = Soak(bench, options.seed, Timeline(bench))
        broken = soak.run(60 * options.minutes)
        sys.stdout.write(json.dumps(summary(soak, time.monotonic() - began_at, broken), indent=2) + "\n")
        for job_id in soak.timeline.concerned(broken, soak.jobs):
            sys.stderr.write(soak.timeline.of(job_id) + "\n")
        return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
