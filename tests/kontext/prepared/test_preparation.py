"""What a start finds prepared, what it keeps, and that nothing in the folder can harm it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

import kontext
from kontext import EngineOptions
from kontext.loading import facts_of_load
from kontext.prepared.compiled import INDUCTOR, TRITON
from kontext.prepared.lock import lock
from kontext.prepared.manifest import COMPILED, MANIFEST, Choices, key_of
from kontext.prepared.preparation import Preparation, find, lock_of, look_up
from tests.waiting import eventually

FACTS = {"torch": "2.13.0", "driver": "580", "offload": "False"}
CHOICES = Choices(attention="flash", products="default")


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose compilers have compiled nothing yet."""
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "caches"))
    monkeypatch.setenv(TRITON, str(tmp_path / "caches" / "triton"))
    monkeypatch.setitem(torch._dynamo.utils.counters, "stats", {"unique_graphs": 0})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "prepared"


def first_start(root: Path) -> Path:
    """The folder that a start keeps which has compiled one file."""
    start = look_up(root, FACTS, compiles=True)
    compiled = Path(os.environ[INDUCTOR]) / "graph"
    compiled.parent.mkdir(parents=True)
    compiled.write_bytes(b"compiled")
    start.keep(CHOICES)
    return root / key_of(FACTS)


def second_start(root: Path, facts: dict[str, str] = FACTS) -> Preparation:
    return look_up(root, facts, compiles=True, wait_seconds=0)


def test_a_second_start_chooses_as_the_first_and_finds_what_it_compiled(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_start(root)
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "elsewhere"))

    found = second_start(root)

    assert found.choices == CHOICES
    assert (tmp_path / "elsewhere" / "graph").read_bytes() == b"compiled"
    assert found.compiled_anew() == []
    (tmp_path / "elsewhere" / "new").touch()
    assert found.compiled_anew() == ["inductor/new"]


def test_a_folder_that_can_only_be_read_is_used(root: Path) -> None:
    folder = first_start(root)
    lock_of(folder).unlink()
    for path in (*folder.iterdir(), folder, root):
        path.chmod(0o555 if path.is_dir() else 0o444)

    assert second_start(root).is_used
    assert not lock_of(folder).exists()


def test_without_a_folder_nothing_is_looked_up(root: Path) -> None:
    start = look_up(None, FACTS, compiles=True)
    start.keep(CHOICES)

    assert not start.is_used


@pytest.mark.parametrize("fact", FACTS)
def test_another_start_is_not_served_and_says_how_it_differs(
    root: Path, fact: str, caplog: pytest.LogCaptureFixture
) -> None:
    first_start(root)

    assert not second_start(root, {**FACTS, fact: "other"}).is_used
    assert f"the nearest for {fact} {FACTS[fact]}, here other; this start prepares it" in caplog.text


def cut(folder: Path) -> None:
    (folder / COMPILED).write_bytes((folder / COMPILED).read_bytes()[:-1])


def change_a_fact(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["facts"]["torch"] = "2.12.0"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def change(path: str, content: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / path).write_text(content if isinstance(content, str) else json.dumps(content))

    return write


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (cut, "compiled.zip is not what its manifest says (SHA-256)"),
        (change_a_fact, "it is for another start; different: torch"),
        (change(MANIFEST, "{"), "its manifest cannot be read"),
        (change(MANIFEST, []), "its manifest cannot be read"),
        (change(MANIFEST, {"format": 1, "facts": {}}), "its manifest cannot be read"),
        (change(MANIFEST, {"format": 99}), "another format than 1"),
        (lambda folder: (folder / COMPILED).unlink(), "compiled.zip is missing"),
        (lambda folder: folder.chmod(0o777), "may be written by others"),
        (lambda folder: (folder / COMPILED).chmod(0o666), "may be written by others"),
    ],
)
def test_a_folder_that_is_not_whole_is_ignored_with_its_reason_and_made_anew(
    root: Path, harm: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = first_start(root)
    harm(folder)

    start = second_start(root)

    assert not start.is_used
    assert any(line.startswith("prepared_ignored") and reason in line for line in caplog.messages)
    start.keep(CHOICES)
    assert find(root, FACTS)[1] is not None


def test_a_folder_that_cannot_be_written_costs_a_line_and_no_more(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    root.write_text("a file is in the way")

    start = second_start(root)
    start.keep(CHOICES)

    assert not start.is_used
    assert "reason=nothing is prepared; it is not prepared now" in caplog.text


def test_what_cannot_be_kept_in_the_end_costs_a_line_and_no_more(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = second_start(root)
    lock_of(root / key_of(FACTS)).unlink()
    root.rmdir()

    start.keep(CHOICES)

    assert "prepared_not_written" in caplog.text


def test_no_room_to_compile_in_costs_a_line_and_no_more(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.environ[INDUCTOR]).write_text("a file is in the way")

    start = second_start(root)
    start.keep(CHOICES)

    assert not start.is_used
    assert "no room to compile in" in caplog.text


def test_a_process_that_has_compiled_before_keeps_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.utils.counters["stats"]["unique_graphs"] = 1

    second_start(root).keep(CHOICES)

    assert find(root, FACTS)[1] is None
    assert "this process has compiled before" in caplog.text


def test_a_second_start_waits_for_the_first_and_uses_what_it_keeps(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = look_up(root, FACTS, compiles=False)
    found: list[Preparation] = []
    second = Thread(target=lambda: found.append(look_up(root, FACTS, compiles=False)))
    second.start()
    eventually(lambda: "prepared_waits" in caplog.text)

    first.keep(CHOICES)
    second.join()

    assert found[0].choices == CHOICES


def test_the_wait_for_a_process_that_goes_on_and_on_ends(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = look_up(root, FACTS, compiles=False)

    second = look_up(root, FACTS, compiles=False, wait_seconds=0.3)
    second.keep(CHOICES)

    assert not second.is_used
    assert "another process is at it" in caplog.text
    assert find(root, FACTS)[1] is None
    first.keep(CHOICES)
    assert find(root, FACTS)[1] is not None


def test_a_start_that_fails_lets_the_next_one_prepare(root: Path) -> None:
    start = look_up(root, FACTS, compiles=False)
    del start

    look_up(root, FACTS, compiles=False, wait_seconds=0).keep(CHOICES)

    assert find(root, FACTS)[1] is not None


HOLD = """
import sys, time
from pathlib import Path
from kontext.prepared.lock import lock
held = lock(Path(sys.argv[1]), 0)
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_process_holds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lock(path, 0) is None

        holder.send_signal(signal.SIGKILL)
        held = lock(path, wait_seconds=120)

    assert held is not None
    os.close(held)


def test_a_model_keeps_its_choices_when_it_is_warm_and_the_next_one_takes_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kontext.loading.choose_products", lambda: "onednn")
    options = EngineOptions(device="cpu", kernels="fast", prepared=root, cache_bytes=0)
    first = kontext.load(None, options)
    assert find(root, facts_of_load(None, options))[1] is None
    first.warm_up()

    monkeypatch.setattr("kontext.loading.choose_products", lambda: pytest.fail("measured again"))
    second = kontext.load(None, options)

    assert second.preparation.is_used
    assert second.products == first.products == "onednn"


def test_facts_tell_loads_apart_that_need_something_else() -> None:
    options = EngineOptions(device="cpu")
    facts = facts_of_load(None, options)

    for other in ({"offload": True}, {"compile": True}, {"dtype": torch.float64}, {"attention": "math"}):
        assert facts_of_load(None, replace(options, **other)) != facts
    for same in ({"cache_bytes": 0}, {"lora_bytes": 0}, {"prepared": Path("/anywhere")}):
        assert facts_of_load(None, replace(options, **same)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["version"] != "none"
