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
from benchmarks.gpu.plan import FULL
from benchmarks.report import COMMIT_VARIABLE, RESULTS
from kontext.config import TransformerConfig

pytestmark = pytest.mark.slow  # the benchmark's stages, each in a process of its own

ROOT = Path(__file__).parents[2]
# A fresh GPU machine has the libraries of the model and not those of the service.
NOT_THERE = ("celery", "kombu", "redis", "pydantic", "pydantic_settings", "boto3")


# Without the eager diffusers, which test_diffusers_rival.py holds to ours; a process more is seconds more.
NATIVE = ("ceiling", "resident", "warm_load", "offload_1", "fp8", "check", "not_compiled")


def rivals() -> dict[str, str]:
    """Names and titles of those whose code is here."""
    has_official = (ROOT / "third_party" / "flux1" / "src").is_dir()
    here = {"official": "official"} if has_official else {}
    return here | ({"diffusers_compiled": "diffusers, blocks compiled"} if find_spec("diffusers") else {})


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
        "--only",
        ",".join([*NATIVE, *rivals()]),
    ]
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", COMMIT_VARIABLE: "abc1234"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (written,) = (folder / "results").glob("*.json")
    return {**json.loads(written.read_text()), "logs": written.with_name(f"{written.stem}-logs")}


def test_it_runs_without_the_libraries_of_the_service(result: dict[str, Any]) -> None:
    assert list(result["figures"]["modes"])[:4] == ["resident", "offload 1 GiB", "fp8", "resident, not compiled"]
    assert result["figures"]["failed"] == {}
    assert result["commit"] == "abc1234"


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
    ("rival", "largest_mean"),
    [
        ("official", 0.0),
        # diffusers keeps the autoencoder in bfloat16, and guidance in float32, of which these random weights make more
        # than trained ones do.
        ("diffusers_compiled", 6.0),
    ],
)
def test_a_rival_does_the_same_edit(result: dict[str, Any], rival: str, largest_mean: float) -> None:
    if rival not in rivals():
        pytest.skip(f"{rival} is not installed")
    figures = result["figures"]["modes"][rivals()[rival]]
    assert figures["mean_pixel_difference"] <= largest_mean
    assert all(figures[f"{stage}_seconds"] > 0 for stage in ("load", "encode", "sample", "decode"))


def test_fp8_is_measured_and_its_product_compared_with_a_cpu(result: dict[str, Any]) -> None:
    fp8 = result["figures"]["modes"]["fp8"]

    assert (fp8["float8_linear_to_cpu"], fp8["is_close"]) == (0, True)
    assert 0 < fp8["mean_pixel_difference"] < 5


def test_a_model_is_loaded_once_more_when_everything_is_warm(result: dict[str, Any]) -> None:
    warm = result["figures"]["warm_load"]

    assert 0 < warm["load_seconds_warm"] < warm["ready_seconds_warm"]


def test_pictures_are_no_flat_colour_and_every_value_is_a_number(result: dict[str, Any]) -> None:
    resident = result["figures"]["modes"]["resident"]

    assert resident["is_finite"]
    assert resident["image_deviation"] > 20
    assert resident["clipped_share"] < 0.5


def test_the_log_of_a_mode_tells_what_offload_planned(result: dict[str, Any]) -> None:
    assert "offload_plan" in (result["logs"] / "offload_1.log").read_text()


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
    (tmp_path / "cpu.json").write_text(json.dumps(result, default=str))

    assert table.render(table.load_results(tmp_path)) == table.NOT_MEASURED


def test_the_table_has_a_row_for_every_mode_and_says_what_failed(result: dict[str, Any]) -> None:
    figures = result["figures"] | {"gpu_benchmark": FULL.name}
    figures["modes"] = {**figures["modes"], "official": {"error": "out of memory"}, "fp8": {"skipped": "no time"}}
    figures["failed"] = {"official": "out of memory"}

    rendered = table.render([result | {"figures": figures}])

    rows = [line for line in rendered.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [f"| {mode}" for mode in figures["modes"]]
    assert "failed: out of memory" in next(row for row in rows if row.startswith("| official"))
    assert "skipped: no time" in next(row for row in rows if row.startswith("| fp8"))
    assert len({row.count("|") for row in rows}) == 1
    assert "- Failed: official: out of memory." in rendered
    assert f"loaded after {figures['warm_load']['load_seconds_warm']} s" in rendered
