"""The datagrams that systemd gets from a worker, received on a real socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.registry import WorkerState
from worker.health import Health
from worker.systemd import Systemd

NOW = 1_795_000_000.0


@pytest.fixture
def received(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield listener


def systemd(tmp_path: Path) -> Systemd:
    return Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")})


def health(state: WorkerState, detail: str = "", redis_seen_at: float = NOW, written_at: float = NOW) -> Health:
    return Health("w1", 1, state, written_at, redis_seen_at, detail)


def lines(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def test_ready_is_said_once_and_only_when_model_and_redis_are_there(received: socket.socket, tmp_path: Path) -> None:
    told = systemd(tmp_path)

    told.report(health(WorkerState.LOADING, "40 % of 33.7 GB read"), NOW)
    told.report(health(WorkerState.READY, redis_seen_at=0), NOW)
    told.report(health(WorkerState.READY), NOW)
    told.report(health(WorkerState.BUSY), NOW)

    assert lines(received) == ["STATUS=loading: 40 % of 33.7 GB read", "WATCHDOG=1"]
    assert lines(received) == ["STATUS=Redis has not answered yet", "WATCHDOG=1"]
    assert lines(received) == ["READY=1", "STATUS=ready", "WATCHDOG=1"]
    assert lines(received) == ["STATUS=busy", "WATCHDOG=1"]


def test_a_worker_that_hangs_gives_no_sign_of_life(received: socket.socket, tmp_path: Path) -> None:
    systemd(tmp_path).report(health(WorkerState.STUCK, "job one: no step for 300 s"), NOW)

    assert lines(received) == ["STATUS=stuck: job one: no step for 300 s"]


@pytest.mark.parametrize("state", [WorkerState.DRAINING, WorkerState.BROKEN])
def test_a_worker_that_ends_by_itself_is_given_the_time_for_its_other_jobs(
    received: socket.socket, tmp_path: Path, state: WorkerState
) -> None:
    systemd(tmp_path).report(health(state), NOW)

    assert lines(received) == [f"STATUS={state}", "STOPPING=1", "WATCHDOG=1"]


def test_an_abstract_socket_is_reached() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0kontext-edits-test-systemd")
        listener.settimeout(5)

        Systemd({"NOTIFY_SOCKET": "@kontext-edits-test-systemd"}).report(health(WorkerState.BUSY, redis_seen_at=0), NOW)

        assert lines(listener) == ["STATUS=Redis has not answered yet", "WATCHDOG=1"]


def test_a_socket_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    systemd(tmp_path).report(health(WorkerState.READY), NOW)
    Systemd({}).report(health(WorkerState.READY), NOW)
