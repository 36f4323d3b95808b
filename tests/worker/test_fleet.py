"""One worker process a GPU under one supervisor, with small programs in the workers' place."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from jobs.errors import SettingsError
from jobs.settings import load_settings
from tests.waiting import PATIENCE_SECONDS, eventually
from worker import fleet as fleet_module
from worker.fleet import Fleet, choose_gpus, process_environment
from worker.settings import Settings

WELL = "import os, signal, sys; print('up', os.environ['GPU'], flush=True); signal.pause()"
DRAINS = (
    "import os, signal, time; signal.signal(15, lambda *_: (os.write(1, b'drained\\n'), os._exit(0)));"
    "os.write(1, b'up\\n'); time.sleep(60)"
)


COUNTS = """
import os, signal
def count(*_):
    count.calls += 1
    os.write(1, b"SIGTERM %d\\n" % count.calls)
    if count.calls == 2: os._exit(0)
count.calls = 0
signal.signal(15, count)
os.write(1, b"up\\n")
while True: signal.pause()
"""


@contextmanager
def running(program: str, gpus: str = "01", is_json: bool = False) -> Iterator[tuple[Fleet, io.StringIO, list[int]]]:
    """A fleet whose processes run a Python program; yields it, what it says, and its exit code once it has ended."""
    out, codes = io.StringIO(), list[int]()
    fleet = Fleet([sys.executable, "-c", program], {gpu: {"GPU": gpu} for gpu in gpus}, out, is_json)
    thread = Thread(target=lambda: codes.append(fleet.run()))
    thread.start()
    try:
        yield fleet, out, codes
    finally:
        fleet.stop()
        thread.join(PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("asked", "environment", "gpus"),
    [
        ("0,2", {}, ["0", "2"]),
        (" 1 ", {}, ["1"]),
        ("all", {"CUDA_VISIBLE_DEVICES": "3,5"}, ["3", "5"]),
    ],
)
def test_gpus_are_named_by_index_or_all(asked: str, environment: dict[str, str], gpus: list[str]) -> None:
    assert choose_gpus(asked, environment) == gpus


@pytest.mark.parametrize("asked", ["", "0,0", "a", "all", "0,"])
def test_a_list_that_names_no_gpus_is_refused(asked: str) -> None:
    with pytest.raises(SettingsError, match=r"^--gpus "):
        choose_gpus(asked, {"CUDA_VISIBLE_DEVICES": ""})


def test_each_process_has_its_gpu_its_name_and_its_port() -> None:
    settings = load_settings(Settings, metrics_port=9105)

    own = process_environment({"DG_WORKER_NAME": "host", "HOME": "/home"}, settings, "2", 1)

    assert own == {
        "HOME": "/home",
        "CUDA_VISIBLE_DEVICES": "2",
        "DG_WORKER_NAME": "host-gpu2",
        "DG_METRICS_PORT": "9106",
    }


def test_all_start_their_lines_carry_their_gpu_and_all_drain() -> None:
    with running(DRAINS) as (fleet, out, codes):
        eventually(lambda: {"gpu0 up", "gpu1 up"} <= set(out.getvalue().splitlines()))
        fleet.stop()
        eventually(lambda: codes)

    assert codes == [0]
    eventually(lambda: out.getvalue().count("drained") == 2)


def test_a_stop_that_interrupts_the_start_of_a_process_reaches_that_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = list[Callable[[], None]]()
    start = subprocess.Popen

    def interrupted(*args: Any, **options: Any) -> Any:
        process = start(*args, **options)
        stops.pop()() if stops else None  # the signal handler runs before the caller has the process
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    fleet = Fleet([sys.executable, "-c", WELL], {gpu: {"GPU": gpu} for gpu in "01"}, io.StringIO())
    stops.append(fleet.stop)
    codes = list[int]()
    Thread(target=lambda: codes.append(fleet.run()), daemon=True).start()

    eventually(lambda: codes, what="the first process was never told to stop")
    assert codes == [0], "ended by the SIGTERM before it could drain, which is no failure"


def test_the_second_stop_reaches_a_process_that_still_drains() -> None:
    with running(COUNTS, gpus="0") as (fleet, out, codes):
        for line in ("up", "SIGTERM 1"):
            eventually(lambda expected=line: f"gpu0 {expected}" in out.getvalue().splitlines())  # type: ignore[misc]
            fleet.stop()
        eventually(lambda: codes)

    assert codes == [0]
    eventually(lambda: "gpu0 SIGTERM 2" in out.getvalue().splitlines())


def test_one_that_dies_is_started_again_and_the_other_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "FIRST_PAUSE_SECONDS", 0.1)
    marker = tmp_path / "died"
    program = f"import os, pathlib; m = pathlib.Path({str(marker)!r})\n"
    program += "if os.environ['GPU'] == '0' and not m.exists(): m.touch(); os.abort()\n" + WELL
    with running(program) as (_, out, _):
        eventually(lambda: {"gpu0 up 0", "gpu1 up 1"} <= set(out.getvalue().splitlines()))

    assert "gpu0 worker ended with code -6; another starts in 0.1 s" in out.getvalue()
    assert out.getvalue().count("up 1") == 1


def test_the_pause_grows_while_a_process_dies_at_once() -> None:
    fleet = Fleet([], {"0": {}}, io.StringIO())
    (member,) = fleet._members
    pauses = []
    for _ in range(8):
        member.started_at = time.monotonic()
        fleet._plan_restart(member, 1)
        pauses.append(member.pause_seconds)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    member.started_at -= 601
    fleet._plan_restart(member, 1)
    assert member.pause_seconds == 1


@pytest.mark.parametrize("code", [2, 4])
def test_wrong_settings_and_missing_weights_end_all(code: int) -> None:
    program = f"import os, sys\nif os.environ['GPU'] == '0': sys.exit({code})\n" + WELL
    with running(program) as (_, _, codes):
        eventually(lambda: codes)

    assert codes == [code]


def test_json_lines_stay_json(tmp_path: Path) -> None:
    marker = tmp_path / "died"
    program = f"import os, pathlib, signal; print('{{}}', flush=True); m = pathlib.Path({str(marker)!r})\n"
    program += "if not m.exists(): m.touch(); os.abort()\nsignal.pause()"
    with running(program, gpus="3", is_json=True) as (_, out, _):
        eventually(lambda: out.getvalue().count("{}\n") == 2)

    first, own, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first == second == {}
    assert (own["gpu"], own["message"]) == ("3", "worker ended with code -6; another starts in 1 s")
