"""The judge of fairness sees who waits longer than its turn: else its silence would say nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from jobs.ledger import Claim, Ledger
from jobs.registry import WorkerInfo, WorkerState
from jobs.schema import JobState
from tests.chaos.bench import Bench
from tests.chaos.fairness import BOUND_SECONDS, IdleWatch, Probes, overtaken
from tests.clock import ManualClock
from tests.jobs.lives import DONE, LEASE_SECONDS, edit_job, submit


class Life:
    """Jobs that are submitted, taken, lost and ended, each a second after the other."""

    def __init__(self, ledger: Ledger, clock: ManualClock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._ids: list[str] = []

    def submit(self, job_id: str, **fields: str) -> None:
        self._clock.advance(1)
        submit(self._ledger, edit_job(job_id, **fields))
        self._ids.append(job_id)

    def take(self, job_id: str = "") -> str:
        """Take the best job, or that one whatever its turn, and end it."""
        self._clock.advance(1)
        claim = self._claim(job_id)
        self._clock.advance(1)
        self._ledger.finish(claim.job_id, claim.token, JobState.SUCCEEDED, DONE)
        return claim.job_id

    def lose(self, job_id: str) -> None:
        """Take that job in a worker that is lost."""
        self._claim(job_id)
        self._clock.advance(LEASE_SECONDS + 1)
        self._ledger.expire(max_attempts=3)

    def judged(self) -> list[str]:
        return overtaken(record for record in self._ledger.get_many(self._ids) if record is not None)

    def _claim(self, job_id: str) -> Claim:
        ledger = self._ledger
        claim = ledger.claim(job_id, "w", LEASE_SECONDS) if job_id else ledger.claim_best("w", LEASE_SECONDS)
        assert isinstance(claim, Claim)
        return claim


@pytest.fixture
def life(ledger: Ledger, clock: ManualClock) -> Life:
    return Life(ledger, clock)


def fill(life: Life) -> None:
    """Jobs of three tenants and priorities, one of them lost by its worker."""
    life.submit("lost", priority="low")
    life.lose("lost")
    for number in range(4):
        life.submit(f"lab{number}", tenant="lab")
        life.submit(f"shop{number}", tenant="shop")
    life.submit("high", priority="high")


def test_who_is_served_in_turn_has_nothing_to_complain_of(life: Life) -> None:
    fill(life)

    order = [life.take() for _ in range(10)]

    assert order[:2] == ["lost", "high"]
    assert life.judged() == []


@pytest.mark.parametrize(
    ("out_of_turn", "said"),
    [
        (["high"], "lost: overtaken by 1 that go after it, high first"),
        (["lost", "lab0"], "high: overtaken by 1 that go after it, lab0 first"),
        (["lost", "high", "lab0", "lab1", "lab2"], "shop0: tenant 'lab' was served"),
    ],
)
def test_who_is_overtaken_is_named(life: Life, out_of_turn: list[str], said: str) -> None:
    fill(life)

    for job_id in out_of_turn:
        life.take(job_id)
    for _ in range(10 - len(out_of_turn)):
        life.take()

    assert said in "\n".join(life.judged())


@pytest.fixture
def watch(bench: Bench, clock: ManualClock) -> tuple[IdleWatch, Callable[..., None]]:
    """A watch beside a service that has one idle worker and one job, and a way to let time pass."""
    watch = IdleWatch(bench, threads=2, clock=lambda: clock() / 1e6, beat_seconds=60)
    bench.submit("waits")

    def pass_time(seconds: float, is_redis_well: bool = True, jobs: tuple[str, ...] = ()) -> None:
        clock.advance(seconds)
        bench.client.registry.beat(WorkerInfo("w1", WorkerState.READY, jobs=jobs))
        watch.look(is_redis_well)

    pass_time(0)
    return watch, pass_time


def test_a_job_that_waits_beside_an_idle_worker_is_named(
    watch: tuple[IdleWatch, Callable[..., None]],
) -> None:
    judge, pass_time = watch
    pass_time(BOUND_SECONDS - 1)
    assert not judge.said
    pass_time(2)
    assert list(judge.said) == ["waits"]


def test_neither_a_sick_redis_nor_busy_threads_are_idleness(
    watch: tuple[IdleWatch, Callable[..., None]],
) -> None:
    judge, pass_time = watch
    pass_time(BOUND_SECONDS - 1, is_redis_well=False)
    pass_time(2)
    for _ in range(3):
        pass_time(BOUND_SECONDS - 1, jobs=("a", "b"))
    for name in ("c", "d", "e"):  # short jobs, between two of which each report was made
        pass_time(BOUND_SECONDS - 1, jobs=(name,))

    assert not judge.said
    pass_time(BOUND_SECONDS - 1, jobs=("e",))
    pass_time(BOUND_SECONDS - 1, jobs=("e",))
    assert "while 'w1 e' takes no job" in judge.said["waits"]


def test_a_lease_that_nobody_takes_back_is_named(bench: Bench, watch: tuple[IdleWatch, Callable[..., None]]) -> None:
    judge, pass_time = watch
    bench.ledger.claim("waits", "gone", LEASE_SECONDS)
    key, long_ago = bench.ledger.key("running"), bench.ledger.now_us() - 1e6 * (BOUND_SECONDS + 1)
    bench.ledger.redis.zadd(key, {"waits": long_ago})

    pass_time(1)
    assert not judge.said, "nobody had been there for long"
    pass_time(BOUND_SECONDS)

    assert "its lease ended" in judge.said["waits"]


def test_a_living_worker_that_a_probe_calls_dead_is_named(bench: Bench) -> None:
    probes = Probes(bench, patience_seconds=0)
    bench.start_worker("w1")
    for _ in range(2):
        probes.ask()
    assert not probes.said

    bench.workers["w1"].signal(signal.SIGSTOP)
    (bench.runtime / "w1.json").unlink()
    for _ in range(2):
        probes.ask()

    assert "a probe says 'no health file' of a process that lives" in "".join(probes.said.values())
