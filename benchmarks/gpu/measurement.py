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

from benchmarks import random_model
from benchmarks.gpu import checks, edits
from benchmarks.gpu.plan import GIB, MODEL, SCALES, WARM_LOAD, Measurement, Mode, Scale
from kontext.choices import ALLOCATOR_SETTING, ALLOCATOR_VARIABLE

ROOT = Path(__file__).parents[2]
# The last line of a traceback: "SomeError: why", or with its module "package.exc.Unsupported: why".
EXCEPTION = re.compile(r"^(?:(?:\w+\.)+[A-Z]\w*|[A-Z]\w*(?:Error|Exception)|KeyboardInterrupt)(?::.*)?$", re.MULTILINE)
LONGEST_REASON = 300  # characters
WEIGHTS_SEED = 1
SECONDS_TO_SAY_WHERE = 3.0  # before a process that takes too long is killed, it writes where it is


@dataclass(frozen=True)
class Place:
    """Device and folders of the measurements."""

    scale: str  # a key of SCALES
    device: str
    folder: Path  # for the models, figures and images
    compiled: Path  # for the compiler's cache
    logs: Path  # one of each process

    def figures_path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def image_path(self, name: str) -> Path:
        return self.folder / f"{name}.png"


def measure(measurement: Measurement, place: Place, timeout_seconds: float, is_capped: bool = True) -> dict[str, Any]:
    """Run a measurement and return its figures, or {"error": the reason}; both with the seconds it took.

    The process's output goes to its log.

    Args:
        is_capped: keep torch's allocator to the budget of an offload mode.
    """
    result = place.figures_path(measurement.name)
    for left_over in (result, place.image_path(measurement.name)):
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
    # A cache of its own for the compiler: the first load compiles everything, later ones find it.
    # The allocator's setting is the worker's.
    environment = {
        ALLOCATOR_VARIABLE: ALLOCATOR_SETTING,
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(place.compiled),
    }
    started = time.perf_counter()
    try:
        with log.open("w") as said:
            subprocess.run(
                command, cwd=ROOT, env=environment, stdout=said, stderr=said, timeout=timeout_seconds, check=True
            )
        figures = json.loads(result.read_text())
    except subprocess.TimeoutExpired:
        figures = {"error": f"not done after {timeout_seconds:.0f} s; the log says where it was"}
    except subprocess.CalledProcessError as ended:
        figures = {"error": why(log.read_text(errors="replace"), ended.returncode)}
    return {**figures, "wall_seconds": round(time.perf_counter() - started, 1)}


def why(log: str, status: int) -> str:
    """Reason of a failure: the log's last exception, otherwise the status and the last line."""
    if exceptions := EXCEPTION.findall(log):
        return str(exceptions[-1])[:LONGEST_REASON]
    ending = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
    last_line = (log.strip() or "without a word").splitlines()[-1]
    return f"{ending}: {last_line}"[:LONGEST_REASON]


def main(request: dict[str, Any], result: Path) -> None:
    """Measure what the request names and write the figures."""
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(0.1, request["timeout_seconds"] - SECONDS_TO_SAY_WHERE))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Attention chosen and refused, and the plan of offload.
    logging.getLogger("kontext").setLevel(logging.DEBUG)
    figures = figures_of(request)
    faulthandler.cancel_dump_traceback_later()
    result.write_text(json.dumps(figures))


def figures_of(request: dict[str, Any]) -> dict[str, Any]:
    """Measure in this process; {"skipped": the reason} if an engine is not on this machine."""
    scale, device, folder = SCALES[request["scale"]], torch.device(request["device"]), Path(request["folder"])
    full, name = folder / "full", request["name"]
    if name == "ceiling":
        return checks.measure_ceiling(scale, device)
    if name == "check":
        shallow = folder / "shallow"
        if not random_model.is_written(shallow):
            random_model.write_random_model(shallow, scale.shallow, WEIGHTS_SEED, device, torch.bfloat16)
        return checks.check_outputs(scale, shallow, device)
    if name == MODEL:
        if random_model.is_written(full):
            return {"was_there": True}
        random_model.write_random_model(full, scale.model, WEIGHTS_SEED, device, torch.bfloat16, scale.encoders)
        return {}
    if name == WARM_LOAD:
        return edits.measure_load(full, device, request["started_at"])
    try:
        return _edit(scale, full, device, Mode(**request["mode"]), folder / f"{name}.png", request["is_capped"])
    except edits.Unavailable as missing:
        return {"skipped": str(missing)}


def _edit(scale: Scale, folder: Path, device: torch.device, mode: Mode, image: Path, is_capped: bool) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if mode.precision == "fp8":
        figures |= checks.check_float8(scale, device)
    if mode.budget_bytes is not None:
        figures["budget_gib"] = mode.budget_bytes / GIB
        if is_capped:
            edits.cap_allocator(device, mode.budget_bytes)
    return figures | edits.measure_edits(scale, folder, device, mode, image)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
