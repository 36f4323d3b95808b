"""Engines for a worker that is to be stopped while it loads, and for one that takes nothing."""

from __future__ import annotations

import logging
import time

from worker.admission import Admission
from worker.standin import StandinEngine
from worker.untaken import Untaken

SPEED_UP = 60


def mute(*_: object) -> StandinEngine:
    """Keep the worker's gate shut for ever, as a fault of it would; a second of that counts as a minute."""
    seconds = Untaken.__dict__["seconds"].fget
    Untaken.seconds = property(lambda self: SPEED_UP * seconds(self))  # type: ignore[method-assign, assignment]
    Admission.is_open = lambda _: False  # type: ignore[method-assign]
    return StandinEngine()


def slow_to_load(*_: object) -> StandinEngine:
    logging.getLogger(__name__).info("loading for a minute")
    time.sleep(60)
    return StandinEngine()
