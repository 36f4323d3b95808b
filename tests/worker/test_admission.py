"""The gate: when a worker may take the next message."""

from __future__ import annotations

import os

import pytest

from worker.admission import Admission
from worker.events import Events
from worker.model_pool import ModelPool
from worker.standin import StandinEngine


@pytest.fixture
def pool() -> ModelPool:
    pool = ModelPool(StandinEngine, Events())
    pool.load()
    return pool


@pytest.fixture
def gate(pool: ModelPool) -> Admission:
    gate = Admission(pool, threads=3)
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
        gate.has_gpu("a", fetch_seconds=0.1)
        assert not gate.is_open(), "how long the turn takes is not known yet"
        for step in (1, 2):
            pool.note_step(step, 2)
        assert was_woken(gate)
        assert gate.is_open()


def test_it_stays_shut_while_another_job_is_on_its_way_to_the_gpu(gate: Admission, pool: ModelPool) -> None:
    gate.received("a")
    with pool.turn(lambda: None):
        gate.has_gpu("a", fetch_seconds=0.1)
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
    gate.has_gpu("a", fetch_seconds=0.1)
    assert not gate.is_open()
    gate.ended("a")
    assert was_woken(gate)
    assert gate.is_open()


def test_a_draining_worker_takes_nothing_more(gate: Admission) -> None:
    gate.close()
    assert not gate.is_open()
    gate.ended("a")
    assert not was_woken(gate)
