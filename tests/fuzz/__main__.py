"""Give random damage of the seeds to what meets bytes of strangers.

    python -m tests.fuzz [--minutes 5] [--seed 1] [--only image]

Each target has the same share of the time. Whatever it raises that it may not is printed once, and its bytes are kept
in the temporary folder: make a test of it. The exit code is 1 when there was a finding.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from tests.fuzz.damage import damaged
from tests.fuzz.targets import TARGETS, Target

SLOW_SECONDS = 10.0
"""Processor time of one input that is a finding by itself."""


def fuzz(target: Target, seconds: float, draw: random.Random, folder: Path) -> tuple[int, dict[str, Path]]:
    """Feed one target for so long; how many inputs it got, and the first input of each finding."""
    seeds, findings, count = target.seeds(), dict[str, Path](), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        data, count = damaged(seeds, draw), count + 1
        if (what := finding(target, data)) and what not in findings:
            findings[what] = folder / f"{target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            findings[what].write_bytes(data)
    return count, findings


def finding(target: Target, data: bytes) -> str:
    """What is wrong with how the target takes the bytes; empty when nothing is."""
    started = time.process_time()
    try:
        target.take(data)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {place.filename}:{place.lineno}"
    return "slow" if time.process_time() - started > SLOW_SECONDS else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=TARGETS, default=None)
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    chosen = [TARGETS[given.only]] if given.only else [*TARGETS.values()]
    folder, found = Path(tempfile.mkdtemp(prefix="fuzz-")), False
    warnings.simplefilter("ignore")  # of Pillow, about damaged images
    for target in chosen:
        count, findings = fuzz(target, 60 * given.minutes / len(chosen), random.Random(seed), folder)
        sys.stdout.write(f"{target.name}: {count} inputs, {len(findings)} findings (seed {seed})\n")
        for what, path in findings.items():
            sys.stdout.write(f"    {what}: {path}\n")
        found |= bool(findings)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
