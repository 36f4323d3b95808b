"""Long tests begin a run, and each process has some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import pytest

from tests.order import deal_long_tests


@dataclass(frozen=True)
class Item:
    nodeid: str
    is_long: bool = False

    def get_closest_marker(self, name: str) -> bool:
        return self.is_long and name == "long"


SHORT = [Item(f"short.py::{number}") for number in range(7)]
LONG = [Item(f"{file}.py::{number}", is_long=True) for file in "abc" for number in range(2)]


@pytest.mark.parametrize(
    ("processes", "begins"),
    [
        (1, {0: "aabbcc"}),
        (2, {0: "aacc", 6: "bb"}),  # 13 // 2 tests for the first
        (3, {0: "aa", 4: "bb", 8: "cc"}),  # 13 // 3, then 9 // 2
        (4, {0: "aa", 3: "bb", 6: "cc"}),
    ],
)
def test_each_part_begins_with_files_of_long_tests(processes: int, begins: dict[int, str]) -> None:
    items = cast("list[pytest.Item]", [*SHORT, *LONG])

    dealt = deal_long_tests(items, processes)

    assert sorted(item.nodeid for item in dealt) == sorted(item.nodeid for item in items)
    for place, files in begins.items():
        assert "".join(item.nodeid[0] for item in dealt[place : place + len(files)]) == files
    assert [item.nodeid for item in dealt if item.nodeid.startswith("short")] == [item.nodeid for item in SHORT]


def test_more_long_tests_than_a_part_holds_are_all_kept() -> None:
    items = cast("list[pytest.Item]", LONG)

    assert sorted(item.nodeid for item in deal_long_tests(items, 4)) == [item.nodeid for item in LONG]
