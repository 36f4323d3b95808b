"""The official code, where it was fetched; without it these tests are skipped, and tests/golden stands for it."""

from __future__ import annotations

import pytest

from kontext.config import PREFERRED_RESOLUTIONS
from kontext.errors import CheckpointError
from kontext.official import OfficialCode, import_official


@pytest.fixture(scope="session")
def official() -> OfficialCode:
    """The modules of the official package, with the resolutions of the 12B model."""
    try:
        return import_official(PREFERRED_RESOLUTIONS)
    except CheckpointError as absent:
        pytest.skip(str(absent))
