"""An engine for a worker that is to be stopped while it loads."""

from __future__ import annotations

import logging
import time

from worker.standin import StandinEngine


def slow_to_load(*_: object) -> StandinEngine:
    logging.getLogger(__name__).info("loading for a minute")
    time.sleep(60)
    return StandinEngine()
