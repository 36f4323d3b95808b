"""The known command line with the real worker: once with the stand-in engine, once with the bundled model."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.servers.worker import ROOT


@pytest.mark.parametrize(("engine", "rows_done"), [("standin", "0:"), ("native", "1:")])
def test_the_known_command_edits_images(tmp_path: Path, engine: str, rows_done: str) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (96, 64), "orange").save(tmp_path / "in/cat.png")
    (tmp_path / "in/data.csv").write_text(
        "index,image_url,instruction,width,height\n0,cat.png,make it pink,,\n1,cat.png,make it blue,80,48\n"
    )
    words = (
        f"edit --backend flux_kontext_official --model_name {ROOT / 'models/tiny'} --input in/data.csv "
        "--output_dir ./output --num_inference_steps 2 --guidance_scale 2.5 --seed 7 "
        f"--filter_rows {rows_done}"
    )
    variables = {"PYTHONPATH": str(ROOT), "DG_FLUX_KONTEXT_ENGINE": engine, "DG_FLUX_KONTEXT_OFFLOAD": "false"}

    ended = subprocess.run(
        [sys.executable, "-m", "producer.diffgentor", *words.split()],
        cwd=tmp_path,
        env={**os.environ, **variables, "STANDIN_STEP_SECONDS": "0"},
        capture_output=True,
        text=True,
    )

    assert ended.returncode == 0, ended.stderr
    with (tmp_path / "output/results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first, second = rows
    assert first["state"] == ("not queued" if rows_done == "1:" else "succeeded")
    assert (second["state"], second["output_image"], second["seed"]) == ("succeeded", "000001.png", "7")
    with Image.open(tmp_path / "output/000001.png") as image:
        assert image.size == (80, 48), "a row's own width and height count"
