"""What every benchmark's result says of code and machine."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import report
from training import machine
from training.machine import describe_gpu


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit of one file."""
    (tmp_path / "file").write_text("one")
    author = ("-c", "user.name=A", "-c", "user.email=a@example.com")
    for command in (["init", "-q"], ["add", "file"], [*author, "commit", "-qm", "Begin"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_a_repository_tells_its_commit_and_whether_files_differ(repository: Path) -> None:
    before = report.describe_code(None, repository)
    (repository / "file").write_text("two")

    assert (before["has_local_changes"], len(before["commit"])) == (False, 7)
    assert report.describe_code(None, repository) == {**before, "has_local_changes": True}


def test_a_copied_tree_knows_no_commit_even_inside_another_repository(repository: Path) -> None:
    copied = repository / "copied"
    copied.mkdir()

    assert report.describe_code(None, copied) == {"commit": None, "has_local_changes": None}
    assert report.describe_code("abc1234", copied) == {"commit": "abc1234", "has_local_changes": None}


def test_the_commit_can_be_given_by_a_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(report.COMMIT_VARIABLE, "abc1234")

    assert report.describe_run(checkout=tmp_path)["commit"] == "abc1234"
    assert report.describe_run("def5678", checkout=tmp_path)["commit"] == "def5678"


def test_of_several_gpus_the_first_is_named() -> None:
    answer = "NVIDIA H200, 143771 MiB, 570.86.15\nNVIDIA H200, 143771 MiB, 570.86.15"

    assert describe_gpu(answer) == {"gpu": "NVIDIA H200", "gpu_memory": "143771 MiB", "driver": "570.86.15"}
    assert describe_gpu("") == {}


def test_the_gpu_that_is_measured_is_named_as_torch_numbers_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slice_of_the_second = SimpleNamespace(name="NVIDIA H200 MIG 1g.18gb", total_memory=16 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {torch.device("cuda:1"): slice_of_the_second}.get)
    monkeypatch.setattr(machine, "output_of", lambda *command: "NVIDIA A10, 23028 MiB, 570.86.15")

    described = report.describe_run(checkout=tmp_path, device=torch.device("cuda:1"))["machine"]

    assert (described["gpu"], described["gpu_memory"]) == ("NVIDIA H200 MIG 1g.18gb", "16384 MiB")
    assert described["driver"] == "570.86.15"


def test_a_result_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = {"commit": None}
    report.write_result("gpu", {"one": 1}, tmp_path, run)
    path = report.write_result("gpu", {"one": 1, "two": 2}, tmp_path, run)

    assert json.loads(path.read_text()) == {"benchmark": "gpu", "commit": None, "figures": {"one": 1, "two": 2}}
    assert [found.name for found in tmp_path.iterdir()] == ["gpu.json"]
