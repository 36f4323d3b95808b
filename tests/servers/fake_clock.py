"""A clock for one process that a test can set while the process runs: libfaketime in front of the C library.

Only the time of day is wrong, as after a bad NTP server or a hand at `date`; what the process measures by its monotonic
clock goes on as it should.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.requirements import require

FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
LIBRARY = "faketime/libfaketimeMT.so.1"  # for programs with threads


class FakeClock:
    """How far the clock of a process is off; `environment` makes a new process follow it.

    Args:
        path: a file that the process looks into each time it asks for the time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.environment = {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(path),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set_ahead(0)

    def set_ahead(self, seconds: float) -> None:
        """Let the clock jump to so far ahead of the machine's; below 0 it is behind."""
        new = self._path.with_suffix(".new")
        new.write_text(f"{seconds:+g}")
        os.replace(new, self._path)  # never seen half written


def _library() -> Path | None:
    found = [path for folder in FOLDERS for depth in ("", "*/") for path in Path(folder).glob(depth + LIBRARY)]
    require(found, "no libfaketime here, which sets the clock of one process: sudo apt-get install faketime")
    return found[0]
