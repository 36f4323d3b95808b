"""`make alerts`: makes the cause of every alert, one after the other, and waits until a real Prometheus raises it.

    python -m tests.deploy.alerts [ALERT ...]

Redis, workers, `worker callbacks`, `worker exporter` and Prometheus are the real ones; only the model is the stand-in,
and in the rules a minute lasts a second. Each cause is undone before the next one, and its alert must go away. Prints a
line for each; exit code 1 when one does not come or go. Some six minutes. The disk of Redis can be filled as root only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.deploy.alerts.causes import CAUSES, Cause
from tests.deploy.alerts.site import Site, running_site
from tests.isolation import isolate_environment
from tests.waiting import eventually, passing

CALM_SECONDS = 20
"""Longer than any `for:` and window of the rules that are tried, but that of the hour."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("alerts", nargs="*", metavar="ALERT", help="try these alone")
    asked = parser.parse_args().alerts
    if missing := [name for name in ("prometheus", "redis-server") if shutil.which(name) is None]:
        parser.error(f"not installed: {', '.join(missing)} (sudo apt-get install prometheus redis-server)")
    if strange := set(asked) - {cause.alert for cause in CAUSES}:
        parser.error(f"no such alert: {', '.join(strange)}")
    isolate_environment()
    chosen = [cause for cause in CAUSES if not asked or cause.alert in asked]
    with tempfile.TemporaryDirectory(prefix="kontext-alerts-") as folder, running_site(Path(folder)) as site:
        rest_quietly(site)
        return max([try_cause(site, cause) for cause in chosen])


def rest_quietly(site: Site) -> None:
    """See that a service that is well and works wakes nobody."""
    site.submit("well", 40)
    passing(CALM_SECONDS)
    assert site.firing() == {}, site.firing()
    say("-", "a service that is well and works", "no alert")


def try_cause(site: Site, cause: Cause) -> int:
    """Make a cause, wait for its alert, undo the cause, wait until all alerts are gone; returns an exit code."""
    if cause.needs_root and os.geteuid() != 0:
        say(cause.alert, cause.words, "not tried: needs root")
        return 0
    started, others = time.monotonic(), set[str]()
    with cause.make(site):
        has_come = comes_true(lambda: cause.alert in note(others, site))
        seconds, summary = time.monotonic() - started, site.firing().get(cause.alert, "")
    if not (has_come and comes_true(lambda: not note(others, site))):
        say(cause.alert, cause.words, f"FAILED: fires now: {', '.join(site.firing())}; logs in {site.keep_logs()}")
        return 1
    beside = ", ".join(sorted(others - {cause.alert})) or "no other"
    say(cause.alert, cause.words, f"after {seconds:.0f} s: {summary} | beside it: {beside}")
    return 0


def comes_true(predicate: Callable[[], bool]) -> bool:
    """Wait for something that may never be."""
    with suppress(AssertionError):
        return eventually(predicate)
    return False


def note(others: set[str], site: Site) -> dict[str, str]:
    firing = site.firing()
    others.update(firing)
    return firing


def say(alert: str, cause: str, seen: str) -> None:
    sys.stdout.write(f"{alert} | {cause} | {seen}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
