"""Every way of loading that is timed ends with the weights of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks import load
from kontext.weights.checkpoint import build_on_meta


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LAYERS", 2)
    monkeypatch.setattr(load, "WIDTH", 64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file(load.random_weights(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("way", [way for way in load.WAYS if way != "positioned reads"])
def test_a_way_of_loading_gives_the_weights_of_the_file(way: str, path: Path) -> None:
    network = build_on_meta(lambda: nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(2)))

    load.WAYS[way](network, path, torch.device("cpu"))

    for name, weight in load_file(path).items():
        assert torch.equal(network.state_dict()[name].bfloat16(), weight)


def test_a_measurement_has_seconds_and_memory(path: Path) -> None:
    figures = load.measure("ours, copied", path, torch.device("cpu"))

    assert figures.keys() == {"seconds", "gigabytes_per_second", "own_memory_gb", "file_pages_gb"}
    assert figures["seconds"] > 0


def test_positioned_reads_give_the_bytes_of_the_file(path: Path) -> None:
    assert load.positioned_reads(nn.Identity(), path, torch.device("cpu")) == path.read_bytes()
