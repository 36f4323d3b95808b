"""Reports a worker's state to systemd (sd_notify(3)): ready, one line of status, and the watchdog's sign of life.

The units in `deploy/systemd` are of `Type=notify`. Outside of systemd nothing is sent.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

from jobs.registry import WorkerState
from worker.health import Health

SOCKET_VARIABLE = "NOTIFY_SOCKET"

ENDING = frozenset({WorkerState.DRAINING, WorkerState.BROKEN})
"""States of a process that finishes what it has and ends."""


class Systemd:
    """Sends what the health file says to the socket that systemd names; silent where it names none."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        path = environment.get(SOCKET_VARIABLE, "")
        self._address = "\0" + path[1:] if path.startswith("@") else path  # "@" spells an abstract socket
        self._is_ready = False

    def report(self, health: Health, now: float) -> None:
        """Send the state; `READY=1` once the model is loaded and Redis has answered, `WATCHDOG=1` while it is live.

        Without `WATCHDOG=1` systemd ends the process after `WatchdogSec=` and starts another. A broken worker is not
        live, but it ends by itself once its other jobs have ended or are handed back; like a drain, that is said as
        `STOPPING=1` and has `TimeoutStopSec=`. A datagram that cannot be sent is dropped: the next one follows in a
        second.

        Args:
            now: seconds since 1970.
        """
        if not self._address:
            return
        reason = health.why_not_ready(now)
        lines = [f"STATUS={reason or health.state}".replace("\n", " ")]
        if not self._is_ready and reason is None:
            lines.insert(0, "READY=1")
            self._is_ready = True
        if health.state in ENDING:
            lines.append("STOPPING=1")
        if health.state in ENDING or health.why_not_live(now) is None:
            lines.append("WATCHDOG=1")
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            datagram.connect(self._address)
            datagram.send("\n".join(lines).encode())
