"""One measurement in a process of its own, so that memory and failures of one do not meet another.

python -m benchmarks.gpu.measurement '{"name": "resident", ...}' RESULT.json
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.plan import MODEL, WARM_LOAD, Measurement, Mode
from benchmarks.gpu.scale import GIB, SCALES, Scale

ROOT = Path(__file__).parents[2]
# The last line of a traceback: "SomeError: why", or with its module "package.exc.Unsupported: why".
EXCEPTION = re.compile(r"^(?:(?:\w+\.)+[A-Z]\w*|[A-Z]\w*(?:Error|Exception)|KeyboardInterrupt)(?::.*)?$", re.MULTILINE)
LONGEST_REASON = 300  # characters
SECONDS_TO_SAY_WHERE = 3.0  # before a process that takes too long is killed, it writes where it is


@dataclass(frozen=True)
class Place:
    """Where measurements are made."""

    scale: str  # a key of SCALES
    device: str
    folder: Path  # for the models, and what measurements leave for each other
    compiled: Path  # for the compiler's cache
    logs: Path  # what each wrote to stderr

    def figures_path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def picture_path(self, name: str) -> Path:
        return self.folder / f"{name}.png"


def measure(measurement: Measurement, place: Place, timeout_seconds: float, is_capped: bool = True) -> dict[str, Any]:
    """Run a measurement and return its figures, or {"error": why there are none}; both with the seconds it took.

    Everything the process says goes to its log.

    Args:
        is_capped: keep torch's allocator to the budget of an offload mode.
    """
    result = place.figures_path(measurement.name)
    for left_over in (result, place.picture_path(measurement.name)):
        left_over.unlink(missing_ok=True)
    request = {
        "name": measurement.name,
        "mode": asdict(measurement.mode or Mode()),
        "scale": place.scale,
        "device": place.device,
        "folder": str(place.folder),
        "timeout_seconds": timeout_seconds,
        "is_capped": is_capped,
        "started_at": time.time(),
    }
    command = [sys.executable, "-m", __spec__.name, json.dumps(request), str(result)]
    place.logs.mkdir(parents=True, exist_ok=True)
    log = place.logs / f"{measurement.name}{'' if is_capped else '_not_capped'}.log"
    started = time.perf_counter()
    with log.open("w") as said:
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=_environment(place), stdout=said, stderr=said, timeout=timeout_seconds
            )
        except subprocess.TimeoutExpired:
            ended = None
    if ended is None:
        figures = {"error": f"not done after {timeout_seconds:.0f} s; the log says where it was"}
    elif ended.returncode == 0:
        figures = json.loads(result.read_text())
    else:
        figures = {"error": why(log.read_text(errors="replace"), ended.returncode)}
    return {**figures, "wall_seconds": round(time.perf_counter() - started, 1)}


def _environment(place: Place) -> dict[str, str]:
    """With a cache of its own for the compiler: the first load compiles everything, later ones find it."""
    return {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(place.compiled)}


def why(log: str, status: int) -> str:
    """Why a process failed: its last exception, or how it ended."""
    if exceptions := EXCEPTION.findall(log):
        return str(exceptions[-1])[:LONGEST_REASON]
    ending = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
    last_line = (log.strip() or "without a word").splitlines()[-1]
    return f"{ending}: {last_line}"[:LONGEST_REASON]


def main(request: dict[str, Any], result: Path) -> None:
    """Measure what is asked for and write the figures."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.1, request["timeout_seconds"] - SECONDS_TO_SAY_WHERE))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Which attention was chosen and which cannot run, and what offload planned.
    logging.getLogger("kontext").setLevel(logging.DEBUG)
    figures = figures_of(request)
    faulthandler.cancel_dump_traceback_later()
    result.write_text(json.dumps(figures))


def figures_of(request: dict[str, Any]) -> dict[str, Any]:
    """Measure here; {"skipped": why} where an engine is not on this machine."""
    from benchmarks.gpu import checks, edits
    from benchmarks.gpu.rivals import Unavailable

    scale, device, folder = SCALES[request["scale"]], torch.device(request["device"]), Path(request["folder"])
    full, name = folder / "full", request["name"]
    if name == "ceiling":
        return checks.measure_ceiling(scale, device)
    if name == "check":
        return _check(scale, folder / "shallow", device)
    if name == MODEL:
        return _write(scale, full, device)
    if name == WARM_LOAD:
        return edits.measure_load(full, device, request["started_at"])
    try:
        return _edit(scale, full, device, Mode(**request["mode"]), folder / f"{name}.png", request["is_capped"])
    except Unavailable as missing:
        return {"skipped": str(missing)}


def _write(scale: Scale, folder: Path, device: torch.device) -> dict[str, Any]:
    from benchmarks.gpu import model

    if model.is_written(folder):
        return {"was_there": True}
    model.write_full_model(folder, scale, device)
    return {}


def _check(scale: Scale, folder: Path, device: torch.device) -> dict[str, Any]:
    from benchmarks.gpu import checks, model

    if not model.is_written(folder):
        model.write_shallow_model(folder, scale, device)
    return checks.check_outputs(scale, folder, device)


def _edit(
    scale: Scale, folder: Path, device: torch.device, mode: Mode, picture: Path, is_capped: bool
) -> dict[str, Any]:
    from benchmarks.gpu import checks, edits

    figures: dict[str, Any] = {}
    if mode.precision == "fp8":
        figures |= checks.check_float8(scale, device)
    if mode.budget_bytes is not None:
        figures["budget_gib"] = mode.budget_bytes / GIB
        if is_capped:
            edits.cap_allocator(device, mode.budget_bytes)
    return figures | edits.measure_edits(scale, folder, device, mode, picture)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
