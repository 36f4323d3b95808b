"""The fuzzers themselves: every seed is taken, some damage too, and a finding is told."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import finding, fuzz
from tests.fuzz.damage import damaged
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of much that is damaged
def test_seeds_and_a_hundred_damages_of_them_raise_nothing_unforeseen(name: str) -> None:
    target, draw = TARGETS[name], random.Random(7)
    seeds = target.seeds()
    assert seeds

    found = {finding(target, data) for data in [*seeds, *(damaged(seeds, draw) for _ in range(100))]}

    assert found == {""}


def test_a_finding_is_told_once_and_its_bytes_are_kept(tmp_path: Path) -> None:
    def stumble(data: bytes) -> None:
        raise KeyError

    count, findings = fuzz(Target("job", stumble), 0.2, random.Random(1), tmp_path)

    ((what, path),) = findings.items()
    assert count > 1
    assert what.startswith("KeyError at ")
    assert path.stat().st_size > 0
