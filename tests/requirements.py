"""What a test needs of its machine: missing on a laptop it skips, missing in CI it fails."""

from __future__ import annotations

import os

import pytest


def require(present: object, remedy: str) -> None:
    """Skip the test unless `present`; with `CI` set fail it, so that a green run never hides a part that did not run.

    Args:
        present: anything that is true when the requirement is met.
        remedy: what is missing and how to get it.
    """
    if present:
        return
    if os.environ.get("CI"):
        pytest.fail(f"CI must have what the tests need: {remedy}", pytrace=False)
    pytest.skip(remedy)
