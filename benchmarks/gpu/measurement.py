"""One measurement in a process of its own, so that memory and failures of one do not meet another.

python -m benchmarks.gpu.measurement '{"what": "edits", ...}' RESULT.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.scale import SCALES

ROOT = Path(__file__).parents[2]


def main(request: dict[str, Any], result: Path) -> None:
    """Measure what is asked for and write the figures."""
    from benchmarks.gpu import checks, edits, model

    scale, device = SCALES[request["scale"]], torch.device(request["device"])
    folder = Path(request["folder"])
    what = request["what"]
    figures: dict[str, Any] = {}
    if what == "model":
        model.write_full_model(folder / "full", scale, device)
        model.write_shallow_model(folder / "shallow", scale, device)
    elif what == "ceiling":
        figures = checks.measure_ceiling(scale, device)
    elif what == "check":
        figures = checks.check_outputs(scale, folder / "shallow", device)
    else:
        mode = {name: request[name] for name in ("engine", "budget_bytes", "compile", "jobs")}
        figures = edits.measure_edits(scale, folder / "full", device, **mode, picture=folder / f"{request['name']}.png")
    result.write_text(json.dumps(figures))


def measure(request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
    """Run a measurement and return its figures, or {"error": why there are none}; both with the seconds it took."""
    result = Path(request["folder"]) / "result.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", __spec__.name, json.dumps(request), str(result)]
    started = time.perf_counter()
    try:
        ended = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=timeout_seconds)
        figures = json.loads(result.read_text()) if ended.returncode == 0 else {"error": _last_line(ended.stderr)}
    except subprocess.TimeoutExpired:
        figures = {"error": f"not done after {timeout_seconds:.0f} s"}
    return {**figures, "wall_seconds": round(time.perf_counter() - started, 1)}


def _last_line(text: str) -> str:
    return (text.strip() or "ended without a word").splitlines()[-1][:300]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
