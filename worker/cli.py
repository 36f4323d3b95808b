"""The command `worker`: answers plain probes at once, and leaves everything else to `worker.commands`."""

from __future__ import annotations

import os
import sys

PROBE_OPTIONS = frozenset({"--live", "--ready"})


def main() -> None:
    """Entry point. `worker health` with no more than `PROBE_OPTIONS` loads no library: probes run all the time."""
    command, options = sys.argv[1:2], sys.argv[2:]
    if command == ["health"] and PROBE_OPTIONS.issuperset(options):
        from worker.health import answer_probe, find_runtime_dir

        sys.exit(answer_probe(find_runtime_dir(os.environ), live="--live" in options, ready="--ready" in options))
    from worker.commands import main as run_command

    run_command()
