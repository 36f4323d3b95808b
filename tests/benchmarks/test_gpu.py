"""`python -m benchmarks.gpu`, tried out on a CPU at a tiny scale, and the table made of its results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import table
from benchmarks.gpu.edits import block_flops
from benchmarks.gpu.scale import FULL
from benchmarks.report import RESULTS
from kontext.config import TransformerConfig

ROOT = Path(__file__).parents[2]
# A fresh GPU machine has the libraries of the model and not those of the service.
NOT_THERE = ("celery", "kombu", "redis", "pydantic", "pydantic_settings", "boto3")


def rivals() -> list[str]:
    """Those whose code is here."""
    has_official = (ROOT / "third_party" / "flux1" / "src").is_dir()
    return ["official"] * has_official + ["diffusers"] * (find_spec("diffusers") is not None)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark writes where the libraries of the service cannot be imported."""
    folder = tmp_path_factory.mktemp("gpu")
    # Python imports this module at every start, in the processes that the benchmark starts too.
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE}, None))\n")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--tiny",
        "--device",
        "cpu",
        "--results",
        str(folder / "results"),
        *(option for rival in rivals() for option in ("--vs", rival)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (written,) = (folder / "results").iterdir()
    return json.loads(written.read_text())


def test_it_runs_without_the_libraries_of_the_service(result: dict[str, Any]) -> None:
    assert list(result["figures"]["modes"])[:3] == ["resident", "resident, not compiled", "offload 1 GiB"]
    assert result["commit"]


def test_it_measures_every_stage_of_every_mode(result: dict[str, Any]) -> None:
    for mode in result["figures"]["modes"].values():
        stages = [f"{stage}_seconds" for stage in ("load", "first_job", "last_job", "encode", "sample", "decode")]
        assert all(mode[stage] > 0 for stage in stages)


@pytest.mark.parametrize("mode", ["resident, not compiled", "offload 1 GiB"])
def test_every_way_of_running_the_model_gives_the_resident_picture(result: dict[str, Any], mode: str) -> None:
    # Nothing is compiled on a CPU.
    assert result["figures"]["modes"][mode]["largest_pixel_difference"] == 0


def test_the_time_until_the_weights_were_read_is_a_part_of_loading(result: dict[str, Any]) -> None:
    resident = result["figures"]["modes"]["resident"]

    assert 0 < resident["read_seconds"] <= resident["load_seconds"]


@pytest.mark.parametrize(
    ("rival", "modes", "largest_mean"),
    [
        ("official", ["official"], 0.0),
        # diffusers keeps the autoencoder in bfloat16, and guidance in float32, of which these random weights make more
        # than trained ones do.
        ("diffusers", ["diffusers", "diffusers, blocks compiled"], 6.0),
    ],
)
def test_a_rival_does_the_same_edit(result: dict[str, Any], rival: str, modes: list[str], largest_mean: float) -> None:
    if rival not in rivals():
        pytest.skip(f"{rival} is not installed")
    for mode in modes:
        figures = result["figures"]["modes"][mode]
        assert figures["mean_pixel_difference"] <= largest_mean
        assert all(figures[f"{stage}_seconds"] > 0 for stage in ("load", "encode", "sample", "decode"))


def test_outputs_are_compared_with_a_cpu_in_both_dtypes(result: dict[str, Any]) -> None:
    # Here the device is a CPU itself.
    check = result["figures"]["check"]
    assert (check["float32_to_cpu"], check["bfloat16_to_cpu"], check["is_close"]) == (0, 0, True)


def test_a_step_of_the_12b_model_takes_165_tflop() -> None:
    # 4096 target, 4096 reference and 512 text tokens: 112.4 in linear layers and 53.1 in attention.
    assert block_flops(TransformerConfig(), 8704) == pytest.approx(165.5e12, rel=1e-3)


def test_the_documentation_shows_the_results_there_are() -> None:
    document = table.DOCUMENT.read_text()

    assert table.replace_table(document, table.render(table.load_results(RESULTS))) == document


def test_results_of_the_tiny_scale_are_not_shown(tmp_path: Path, result: dict[str, Any]) -> None:
    (tmp_path / "cpu.json").write_text(json.dumps(result))

    assert table.render(table.load_results(tmp_path)) == table.NOT_MEASURED


def test_the_table_has_a_row_for_every_mode_and_says_what_failed(result: dict[str, Any]) -> None:
    figures = result["figures"] | {"gpu_benchmark": FULL.name}
    figures["modes"] = {**figures["modes"], "official": {"error": "out of memory"}}

    rendered = table.render([result | {"figures": figures}])

    rows = [line for line in rendered.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {mode}" for mode in figures["modes"]]
    assert "failed: out of memory" in next(row for row in rows if row.startswith("| official"))
    assert len({row.count("|") for row in rows}) == 1
