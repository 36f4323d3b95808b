"""The order of a run's tests: the long ones first, dealt to all processes.

`--dist worksteal` gives each process a part of the tests in their order, and one that has none left takes some from the
end of another's part. A long test near such an end would be the run's last, with one process at work.
"""

from __future__ import annotations

import pytest

LONG = ("slow", "long")
"""Markers of the tests with which a process should begin."""


def deal_long_tests(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """The tests in an order in which each process's part begins with some of the long ones.

    Those of one file stay together, for they share what they set up.

    Args:
        processes: among which xdist divides the tests, as evenly as it can.
    """
    files: dict[str, list[pytest.Item]] = {}
    others: list[pytest.Item] = []
    for item in items:
        is_long = any(item.get_closest_marker(name) for name in LONG)
        (files.setdefault(item.nodeid.partition("::")[0], []) if is_long else others).append(item)
    dealt: list[pytest.Item] = []
    for process in range(processes):
        size = (len(items) - len(dealt)) // (processes - process)
        share = [item for file in list(files.values())[process::processes] for item in file]
        filling = max(size - len(share), 0)
        dealt += share + others[:filling]
        others = others[filling:]
    return dealt + others
