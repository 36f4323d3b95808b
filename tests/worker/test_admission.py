"""The gate: when a worker may take the next message."""

from __future__ import annotations

import os
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.admission import Admission
from worker.events import Events
from worker.model_pool import ModelPool
from worker.standin import StandinEngine


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool() -> ModelPool:
    pool = ModelPool(StandinEngine, Events())
    pool.load()
    return pool


@pytest.fixture
def gate(pool: ModelPool, clock: Clock) -> Admission:
    gate = Admission(pool, threads=3, clock=clock)
    pool.on_change = gate.look_again
    return gate


def was_woken(gate: Admission) -> bool:
    try:
        return bool(os.read(gate.wake_reader, 100))
    except BlockingIOError:
        return False


def test_nothing_is_taken_while_the_model_loads() -> None:
    assert not Admission(ModelPool(StandinEngine, Events()), threads=3).is_open()


def test_an_idle_worker_takes_one_message_and_no_second(gate: Admission) -> None:
    assert gate.is_open()

    gate.received("a")

    assert not gate.is_open()


def test_the_gate_opens_again_when_the_job_on_the_gpu_is_about_to_end(gate: Admission, pool: ModelPool) -> None:
    gate.received("a")
    with pool.turn(lambda: None):
        gate.has_gpu("a")
        assert not gate.is_open(), "how long the turn takes is not known yet"
        for step in (1, 2):
            pool.note_step(step, 2)
        assert was_woken(gate)
        assert gate.is_open()


def test_it_stays_shut_while_another_job_is_on_its_way_to_the_gpu(gate: Admission, pool: ModelPool) -> None:
    gate.received("a")
    with pool.turn(lambda: None):
        gate.has_gpu("a")
        pool.note_step(1, 1)
        gate.received("b")
        assert not gate.is_open()
    assert not gate.is_open()
    gate.ended("b")
    assert gate.is_open()


def test_an_open_gate_stays_open_until_a_message_comes(gate: Admission, pool: ModelPool) -> None:
    assert gate.is_open()
    with pool.turn(lambda: None):
        assert gate.is_open(), "BRPOP is under way: what it brings must be read"


def test_no_more_than_its_threads_are_in_flight(pool: ModelPool) -> None:
    gate = Admission(pool, threads=1)
    gate.received("a")
    gate.has_gpu("a")
    assert not gate.is_open()
    gate.ended("a")
    assert was_woken(gate)
    assert gate.is_open()


def test_a_draining_worker_takes_nothing_more(gate: Admission) -> None:
    gate.close()
    assert not gate.is_open()
    gate.ended("a")
    assert not was_woken(gate)


def test_a_job_whose_inputs_are_slow_to_come_keeps_no_other_from_the_gpu(
    gate: Admission, pool: ModelPool, clock: Clock
) -> None:
    gate.received("slow")
    assert not gate.is_open()

    clock.now += 1.1

    assert gate.is_open()
    gate.received("quick")
    gate.fetched("quick", fetch_seconds=0.1)
    clock.now += 60
    assert not gate.is_open(), "it has its inputs and needs the GPU next"
    with pool.turn(lambda: None):
        gate.has_gpu("quick")
        pool.note_step(1, 1)
        assert gate.is_open()


def test_slow_jobs_take_no_more_than_the_threads(gate: Admission, clock: Clock) -> None:
    for name in ("a", "b", "c"):
        assert gate.is_open()
        gate.received(name)
        clock.now += 5

    assert not gate.is_open()


def test_where_inputs_usually_take_longer_a_job_may_take_longer(gate: Admission, clock: Clock) -> None:
    for _ in range(20):
        gate.received("a")
        gate.fetched("a", fetch_seconds=3)
        gate.ended("a")
    gate.received("b")

    clock.now += 3.5
    assert not gate.is_open()
    clock.now += 10
    assert gate.is_open()


def test_nothing_is_taken_beside_a_suspect_until_it_has_ended(gate: Admission, pool: ModelPool, clock: Clock) -> None:
    gate.received("suspect")
    gate.fetched("suspect", fetch_seconds=0.1)
    with pool.turn(lambda: None):
        gate.has_gpu("suspect", is_alone=True)
        pool.note_step(1, 1)
        assert not gate.is_open()
    clock.now += 60
    assert not gate.is_open(), "it uploads"
    gate.ended("suspect")
    assert gate.is_open()


MOVES = st.sampled_from(["ask", "receive", "fetched", "has_gpu", "ended", "pass a second"])


@given(moves=st.lists(st.tuples(MOVES, st.integers(0, 2)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_happens_nobody_hoards_and_nothing_is_left_over(moves: list[tuple[str, int]]) -> None:
    """Random lives of messages against what the gate promises, with a GPU that is always about to be free."""
    pool = ModelPool(StandinEngine, Events())
    pool.load()
    clock = Clock()
    gate = Admission(pool, threads=3, clock=clock)
    flying: dict[str, tuple[str, float]] = {}
    names = count()
    was_open = False
    for move, choice in moves:
        name = sorted(flying)[choice % len(flying)] if flying else ""
        stage, since = flying.get(name, ("", 0.0))
        if move == "receive" and was_open:
            new = f"{next(names):03}"
            flying[new] = ("fetching", clock.now)
            gate.received(new)
            was_open = False
        elif move == "fetched" and stage == "fetching":
            flying[name] = ("ready", since)
            gate.fetched(name, fetch_seconds=0.0)
        elif move == "has_gpu" and stage == "ready":
            flying[name] = ("begun", since)
            gate.has_gpu(name)
        elif move == "ended" and stage:
            del flying[name]
            gate.ended(name)
        elif move == "pass a second":
            clock.now += 1.01
        else:
            is_free = len(flying) < 3 and not any(
                stage == "ready" or (stage == "fetching" and clock.now - since <= 1.0)
                for stage, since in flying.values()
            )
            was_open = was_open or is_free
            assert gate.is_open() == was_open
    for name in list(flying):
        gate.ended(name)
    assert gate.is_open()
