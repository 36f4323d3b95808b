"""The resident model: its states, the GPU's turn, and the forecast of the turn's end."""

from __future__ import annotations

import threading

import pytest

from jobs.errors import Cancelled, StopWorker
from jobs.registry import WorkerState
from kontext import NotANumber
from tests.waiting import eventually
from worker.events import Events
from worker.model_pool import ModelPool, TurnForecast
from worker.standin import StandinEngine


def no_objection() -> None:
    return


@pytest.fixture
def pool() -> ModelPool:
    pool = ModelPool(StandinEngine, Events())
    pool.load()
    return pool


def test_the_states_follow_the_models_life(pool: ModelPool) -> None:
    assert ModelPool(StandinEngine, Events()).state is WorkerState.LOADING
    assert pool.state is WorkerState.READY
    with pool.turn(no_objection):
        assert pool.state is WorkerState.BUSY
    assert pool.state is WorkerState.READY
    pool.mark_broken()
    assert pool.state is WorkerState.BROKEN


def test_a_model_whose_warm_up_is_not_a_number_takes_jobs_that_fail_and_say_so() -> None:
    class BrokenWeights(StandinEngine):
        def warm_up(self) -> None:
            raise NotANumber("the model's picture is not a number")

    pool = ModelPool(BrokenWeights, Events())
    pool.load()

    assert pool.state is WorkerState.READY


def test_no_turn_is_given_before_the_model_is_loaded_or_after_the_device_broke(pool: ModelPool) -> None:
    with pytest.raises(StopWorker), ModelPool(StandinEngine, Events()).turn(no_objection):
        pass
    pool.mark_broken()
    with pytest.raises(StopWorker), pool.turn(no_objection):
        pass


def test_one_thread_at_a_time_has_the_turn(pool: ModelPool) -> None:
    order: list[str] = []
    second = threading.Thread(target=lambda: take_turn(pool, order))
    with pool.turn(no_objection):
        second.start()
        order.append("first")
    second.join()

    assert order == ["first", "second"]


def take_turn(pool: ModelPool, order: list[str]) -> None:
    with pool.turn(no_objection):
        order.append("second")


def test_whoever_waits_for_the_turn_can_be_called_off(pool: ModelPool) -> None:
    is_cancelled = threading.Event()
    outcome: list[type[BaseException]] = []

    def check() -> None:
        if is_cancelled.is_set():
            raise Cancelled

    def wait_for_turn() -> None:
        try:
            with pool.turn(check):
                pass
        except Cancelled as error:
            outcome.append(type(error))

    with pool.turn(no_objection):
        waiting = threading.Thread(target=wait_for_turn)
        waiting.start()
        is_cancelled.set()
        eventually(lambda: outcome)
    waiting.join()

    assert outcome == [Cancelled]


def test_an_error_in_the_turn_gives_it_back(pool: ModelPool) -> None:
    with pytest.raises(RuntimeError, match="kernel"), pool.turn(no_objection):
        raise RuntimeError("kernel")

    assert pool.free_within(0)


def test_the_forecast_knows_nothing_until_a_second_step_and_then_counts_down() -> None:
    forecast = TurnForecast()
    forecast.turn_began()
    assert forecast.remaining_seconds() == float("inf")

    for step in range(1, 5):
        forecast.step_done(step, 5)
        eventually(lambda: forecast.remaining_seconds() >= 0)
    assert forecast.remaining_seconds() < 1

    forecast.step_done(5, 5)
    assert forecast.remaining_seconds() < 1
    forecast.turn_ended()
    forecast.turn_began()
    assert forecast.remaining_seconds() < 1, "the last turn's length serves until this one's pace is known"
