"""Record of a model's training: `training.json`, a list of runs, each begun where the one before it ended."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from training.autoencoder import AutoencoderTraining
from training.flow import FlowTraining
from training.machine import describe_machine

RECORD = "training.json"


def write_record(model: Path, begin: Path, flow: FlowTraining, autoencoder: AutoencoderTraining) -> None:
    """Write this run behind the runs of the model it began from."""
    run: dict[str, Any] = {
        "ended": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(flow.device),
        "torch": torch.__version__,
    }
    if flow.step:
        run["flow"] = {
            "steps": flow.step,
            "edits": flow.samples,
            "minutes": round(flow.seconds / 60, 1),
            "matrix_rate": flow.plan.matrix_rate,
            "other_rate": flow.plan.other_rate,
        }
    if autoencoder.step:
        run["autoencoder"] = {
            "steps": autoencoder.step,
            "minutes": round(autoencoder.seconds / 60, 1),
            "decoder_only": autoencoder.decoder_only,
        }
    runs = [*read_record(begin), run]
    (model / RECORD).write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")


def read_record(model: Path) -> list[dict[str, Any]]:
    path = model / RECORD
    runs: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return runs
