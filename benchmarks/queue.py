"""Cost of the queue itself: rates, operations and bytes in Redis, and their growth.

    python -m benchmarks.queue [--jobs 2000] [--queued 100000] [--running 1000]

Everything runs against a private Redis with an append-only file.

- submit: jobs per second into the ledger and the queue by one client.
- one worker: a real worker process with an engine that takes no time; what each job costs Redis.
- simulated: 8 and 200 workers that only take, claim, renew and finish, as threads of a few processes.
- busy: 200 simulated workers in the middle of long jobs; what a second of work costs Redis.
- depth: the same steps, the reconciler and `producer status` with many queued and running.
- turns: the same steps when the jobs that wait are of many tenants and of every priority.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from benchmarks.report import parser, publish
from benchmarks.simulation import DONE, PROCESSES, lives_per_second, next_job, run_busy, run_lives, simulated_workers
from benchmarks.submit import run_producer
from benchmarks.timing import timed
from benchmarks.workers import Bench, bench, running_workers
from jobs.ledger import Claim
from jobs.queue import EditQueue
from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import JobState
from worker.events import Events
from worker.reconciler import Reconciler

STEPS = 200
"""Single calls of each kind."""

ROUNDS = 4
"""So often; the quietest round counts, for other work on the machine makes calls slower and never faster."""

TENANTS = 100
PRIORITIES = ("high", "normal", "low")
BUSY_SECONDS = 15
LONG_LEASE_SECONDS = 3600.0
PROMPT = "make the background of the picture blue and leave everything else as it is"

T = TypeVar("T")


def measure(jobs: int, queued: int, running: int) -> dict[str, Any]:
    with bench() as first:
        worker = {"jobs": jobs, **measure_worker(first, jobs)}
    simulated = {}
    for workers in (8, 200):
        with bench() as other:
            simulated[f"{workers}_workers"] = measure_simulated(other, workers, 5 * jobs)
    with bench() as quiet:
        busy = measure_busy(quiet, 200)
    with bench() as many_tenants:
        turns = measure_turns(many_tenants, queued)
    with bench() as last:
        return {
            "redis_version": last.ledger.redis.info("server")["redis_version"],
            "one_worker": worker,
            "simulated": simulated,
            "busy": busy,
            "depth": measure_depth(last, queued, running),
            "turns": turns,
        }


def in_turns(number: int) -> dict[str, Any]:
    """Tenant and priority of a job of that number, spread over all of them."""
    return {"tenant": f"tenant-{number % TENANTS:02d}", "priority": PRIORITIES[number % len(PRIORITIES)]}


def of_nobody(number: int) -> dict[str, Any]:
    """No tenant, and the priority that is the default."""
    return {}


def submit_jobs(bench: Bench, count: int, fields_of: Callable[[int], dict[str, Any]] = of_nobody) -> None:
    """Submit that many jobs at once."""
    jobs = (bench.job(f"job-{number:07d}", prompt=PROMPT, batch="b", **fields_of(number)) for number in range(count))
    for submission in bench.client.submit_many(jobs):
        assert submission.verdict == "created", submission


@dataclass(frozen=True)
class RedisCost:
    """Work of Redis between two timestamps."""

    cpu_seconds: float
    commands: int
    scripts: int
    bytes_in_and_out: int
    memory_bytes: int


def watch_cost(redis: Any) -> Callable[[], RedisCost]:
    """Count from here on; the returned function reads the counts."""
    redis.config_resetstat()
    before = redis.info("everything")

    def read() -> RedisCost:
        now, calls = redis.info("everything"), redis.info("commandstats")
        return RedisCost(
            cpu_seconds=sum(now[key] - before[key] for key in ("used_cpu_user", "used_cpu_sys")),
            commands=sum(entry["calls"] for entry in calls.values()),
            scripts=calls.get("cmdstat_evalsha", {"calls": 0})["calls"],
            bytes_in_and_out=now["total_net_input_bytes"] + now["total_net_output_bytes"],
            memory_bytes=now["used_memory"] - before["used_memory"],
        )

    return read


def measure_worker(bench: Bench, jobs: int) -> dict[str, float]:
    """One real worker: jobs per second and the cost of each."""
    redis = bench.ledger.redis
    read = watch_cost(redis)
    seconds, submitted = timed(lambda: submit_jobs(bench, jobs)), read()
    idle_cpu = idle_cpu_per_second(redis)
    read = watch_cost(redis)
    with running_workers(bench, variables={"STANDIN_STEP_SECONDS": "0"}):
        worked = wait_for_batch(bench, jobs)
        ended, connections = read(), bench.ledger.redis.info("clients")["connected_clients"] - 1
    cpu_seconds = submitted.cpu_seconds + ended.cpu_seconds - idle_cpu * (seconds + worked)
    return {
        "submit_jobs_per_second": round(jobs / seconds),
        "jobs_per_second": round(jobs / worked, 1),
        "redis_scripts_per_job": round((submitted.scripts + ended.scripts) / jobs, 1),
        "redis_commands_per_job_with_those_inside_scripts": round((submitted.commands + ended.commands) / jobs, 1),
        "redis_network_bytes_per_job": round((submitted.bytes_in_and_out + ended.bytes_in_and_out) / jobs),
        "redis_cpu_microseconds_per_job": round(1e6 * cpu_seconds / jobs),
        "redis_memory_bytes_per_queued_job": round(submitted.memory_bytes / jobs),
        "redis_memory_bytes_per_ended_job": round((submitted.memory_bytes + ended.memory_bytes) / jobs),
        "redis_connections": connections,
    }


def wait_for_batch(bench: Bench, jobs: int) -> float:
    """Wait until all jobs have succeeded; seconds from the first claim to the last end."""
    while bench.client.status("b")[JobState.SUCCEEDED] < jobs:
        time.sleep(0.2)
    records = [record for record in bench.ledger.get_many(list(bench.ledger.batch_job_ids("b"))) if record]
    began = min(record.started_at.timestamp() for record in records if record.started_at)
    return max(record.finished_at.timestamp() for record in records if record.finished_at) - began


def measure_busy(bench: Bench, workers: int) -> dict[str, float]:
    """Workers in the middle of long jobs, with all requests of their background threads."""
    redis = bench.ledger.redis
    idle_cpu = idle_cpu_per_second(redis)
    submit_jobs(bench, workers)
    with simulated_workers(run_busy, bench.broker_url, workers, 2.5 * BUSY_SECONDS) as runs:
        while bench.ledger.queue_counts()["running"] < workers:
            time.sleep(0.1)
        cpu = idle_cpu_per_second(redis)
        for run in runs:
            run.result()
    return {
        "workers": workers,
        "redis_cpu_microseconds_per_second_per_worker": round(1e6 * (cpu - idle_cpu) / workers),
        "redis_cpu_percent_of_a_core": round(100 * cpu, 1),
    }


def idle_cpu_per_second(redis: Any) -> float:
    """Seconds of Redis's processor per second while this program asks nothing of it."""
    read = watch_cost(redis)
    time.sleep(BUSY_SECONDS)
    return read().cpu_seconds / BUSY_SECONDS


def measure_simulated(bench: Bench, workers: int, jobs: int) -> dict[str, float]:
    """Workers without images: jobs per second, and the cost of each to Redis."""
    submit_jobs(bench, jobs)
    read = watch_cost(bench.ledger.redis)
    with simulated_workers(run_lives, bench.broker_url, workers) as runs:
        lives = [run.result() for run in runs]
    cost = read()
    assert bench.client.status("b")[JobState.SUCCEEDED] == jobs
    return {
        "jobs": jobs,
        "client_processes": PROCESSES,
        "jobs_per_second": round(lives_per_second(lives)),
        "redis_cpu_microseconds_per_job": round(1e6 * cost.cpu_seconds / jobs),
    }


def measure_depth(bench: Bench, queued: int, running: int) -> dict[str, Any]:
    """The same steps on an empty ledger and with many jobs in it; the reconciler and `producer status` with many."""
    shallow = measure_steps(bench)
    read = watch_cost(bench.ledger.redis)
    seconds = timed(lambda: submit_jobs(bench, queued + running))
    memory_bytes = read().memory_bytes
    start_jobs(bench, running)
    deep = measure_steps(bench)
    reconciler = Reconciler(bench.ledger, EditQueue(bench.ledger.redis), max_attempts=3, events=Events())
    counts = bench.ledger.queue_counts()
    figures = {
        "queued": counts["queued"],
        "running": counts["running"],
        "submit_jobs_per_second": round((queued + running) / seconds),
        "redis_memory_bytes_per_queued_job": round(memory_bytes / (queued + running)),
        "milliseconds_when_empty": shallow,
        "milliseconds_with_these": deep,
        "reconciler_ms": median_ms(lambda: reconciler.reconcile(bench.ledger.now_us()), 50),
        "status_call_ms": median_ms(bench.ledger.queue_counts, STEPS),
        "status_command_ms": median_ms(lambda: run_producer(bench.broker_url, "status", "--json"), 5),
    }
    return {**figures, "reconciler_after_all_workers_died_ms": measure_mass_death(bench, reconciler, running)}


def measure_turns(bench: Bench, queued: int) -> dict[str, Any]:
    """The steps of a job's life with many waiting, of many tenants and of every priority."""
    read = watch_cost(bench.ledger.redis)
    seconds = timed(lambda: submit_jobs(bench, queued, in_turns))
    memory_bytes = read().memory_bytes
    return {
        "queued": queued,
        "tenants": TENANTS,
        "priorities": len(PRIORITIES),
        "submit_jobs_per_second": round(queued / seconds),
        "redis_memory_bytes_per_queued_job": round(memory_bytes / queued),
        "milliseconds_with_these": measure_steps(bench, in_turns),
    }


def measure_mass_death(bench: Bench, reconciler: Reconciler, running: int) -> float:
    """Milliseconds of the run that takes back every job of workers that all fell silent."""
    redis, key = bench.ledger.redis, bench.ledger.key("running")
    redis.zadd(key, {str(job_id): 1.0 for job_id in redis.zrange(key, 0, -1)})
    reconciler.tick()  # the pause since the last tick looks like an outage of Redis, in which no lease is taken away
    milliseconds = 1000 * timed(lambda: reconciler.reconcile(bench.ledger.now_us()))
    left = bench.ledger.queue_counts()["running"]
    assert left == 0, f"{left} of {running} jobs still wait for another run"
    return round(milliseconds, 1)


def measure_steps(bench: Bench, fields_of: Callable[[int], dict[str, Any]] = of_nobody) -> dict[str, float]:
    """Milliseconds of each step of a job's life, one call at a time: the median of the quietest round."""
    rounds = [_measure_round(bench, fields_of) for _ in range(ROUNDS)]
    return {step: round(min(medians[step] for medians in rounds), 3) for step in rounds[0]}


def _measure_round(bench: Bench, fields_of: Callable[[int], dict[str, Any]]) -> dict[str, float]:
    lasted: dict[str, list[float]] = {}

    def note(step: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        lasted.setdefault(step, []).append(1000 * (time.perf_counter() - start))
        return result

    for number in range(STEPS // ROUNDS):
        job = bench.job(f"single-{time.time_ns()}-{number}", prompt=PROMPT, batch="b", **fields_of(number))
        note("submit", partial(bench.client.submit, job))
        note("position", partial(bench.ledger.position, job.id))
        hint = note("take", partial(next_job, bench.ledger))
        assert hint is not None
        claim = note("claim", partial(bench.ledger.claim_best, "w", LONG_LEASE_SECONDS, hint=hint))
        assert isinstance(claim, Claim)
        note("spend", partial(bench.ledger.spend, claim.job_id, claim.token))
        note("renew", partial(bench.ledger.renew, claim.job_id, claim.token, LONG_LEASE_SECONDS))
        note("finish", partial(bench.ledger.finish, claim.job_id, claim.token, JobState.SUCCEEDED, DONE))
    return {step: statistics.median(times) for step, times in lasted.items()}


def start_jobs(bench: Bench, jobs: int) -> None:
    """Take jobs from the queue as workers do that then work for an hour."""
    for number in range(jobs):
        hint = next_job(bench.ledger)
        assert hint is not None
        claim = bench.ledger.claim_best(f"w{number}", LONG_LEASE_SECONDS, hint=hint)
        assert isinstance(claim, Claim)
        report = WorkerInfo(f"w{number}", WorkerState.BUSY, device="cuda:0", jobs=(claim.job_id,))
        bench.client.registry.beat(report)


def median_ms(work: Callable[[], object], times: int) -> float:
    return round(1000 * statistics.median(timed(work) for _ in range(times)), 2)


if __name__ == "__main__":
    counts = parser(__doc__, jobs=2000, queued=100_000, running=1000).parse_args()
    publish("queue", measure(**vars(counts)))
