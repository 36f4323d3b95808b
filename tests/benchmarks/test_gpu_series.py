"""How `python -m benchmarks.gpu` goes through its measurements: order, time, failures, what counts as one."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import edits, measurement
from benchmarks.gpu.__main__ import free_name, parse, workplace
from benchmarks.gpu.measurement import Place, measure, why
from benchmarks.gpu.plan import FULL, GIB, TINY, Measurement, Mode, make_plan
from benchmarks.gpu.series import TimeBudget, complaints, describe_image, measure_series
from kontext import official
from tests.kontext.golden import MODEL

NATIVE = ["ceiling", "model", "resident", "warm_load", "offload_16", "offload_12", "offload_8", "fp8", "check"]
LATE = ["offload_24", "not_compiled", "step_cache"]


class Bench:
    """Stands in for `measure`: notes what it is asked for, lets a clock run, leaves figures as the processes do."""

    def __init__(self, answers: dict[str, dict[str, Any]] | None = None, seconds: float = 0.0) -> None:
        self.answers = answers or {}
        self.seconds = seconds
        self.now = 0.0
        self.asked: list[tuple[Measurement, float, bool]] = []

    def __call__(self, wanted: Measurement, place: Place, timeout: float, is_capped: bool = True) -> dict[str, Any]:
        self.asked.append((wanted, timeout, is_capped))
        self.now += self.seconds
        figures = self.answers.get(wanted.name, {}) if is_capped else {"median_job_seconds": 9.0}
        if "error" not in figures:
            place.figures_path(wanted.name).write_text(json.dumps(figures))
        return dict(figures)

    @property
    def names(self) -> list[str]:
        return [wanted.name for wanted, _, _ in self.asked]


def names(plan: list[Measurement]) -> list[str]:
    return [one.name for one in plan]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place("tiny", "cpu", tmp_path, tmp_path / "compiled", tmp_path / "logs")


@pytest.fixture
def go(place: Place) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Goes through a plan; (the figures, what was written after each measurement)."""

    def run(bench: Bench, plan: list[Measurement], minutes: float | None = None) -> Any:
        written: list[dict[str, Any]] = []
        budget = TimeBudget(minutes, clock=lambda: bench.now)
        figures = measure_series(
            plan, FULL, place, budget, lambda figures: written.append(copy.deepcopy(figures)), bench
        )
        return figures, written

    return run


def test_what_tells_most_comes_first() -> None:
    assert names(make_plan(FULL)) == [*NATIVE, *LATE]
    assert names(make_plan(FULL, rivals=["diffusers"]))[-2:] == ["diffusers", "diffusers_compiled"]


def test_the_model_is_written_for_edits_only() -> None:
    assert names(make_plan(FULL, only=["offload_16", "resident"])) == ["model", "resident", "offload_16"]
    assert names(make_plan(FULL, only=["check", "ceiling"])) == ["ceiling", "check"]
    assert names(make_plan(FULL, only=["ceiling"], rivals=["official"])) == ["ceiling", "model", "official"]


def test_an_unknown_name_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--device", "cpu", "--only", "resident,offload_17"])

    assert "there is no offload_17; choose from ceiling, model, resident" in capsys.readouterr().err


def test_a_machine_without_that_gpu_is_told_so_before_anything_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["--device", "cuda:99"])

    (*_, last_line) = capsys.readouterr().err.splitlines()
    assert last_line.startswith("python -m benchmarks.gpu: error: device is cuda:99, but torch")


def test_all_that_is_known_is_written_after_every_measurement(go: Any) -> None:
    _, written = go(Bench(), make_plan(FULL, only=["ceiling", "resident", "fp8"]))

    assert [list(figures["modes"]) for figures in written] == [[], [], ["resident"], ["resident", "fp8"]]
    assert all("ceiling" in figures for figures in written)


def test_what_no_longer_fits_is_skipped_and_what_is_shorter_still_measured(go: Any) -> None:
    # Of 540 s each measurement takes 70; after six of them 120 are left, after seven 50.
    bench = Bench(seconds=70)

    figures, _ = go(bench, make_plan(FULL), minutes=9)

    assert bench.names == [*NATIVE[:6], "offload_8", "offload_24"]
    assert figures["modes"]["fp8"] == {"skipped": "it takes about 75 s, and 50 s were left"}
    assert figures["check"] == {"skipped": "it takes about 75 s, and 50 s were left"}
    assert figures["failed"] == {}


def test_no_measurement_goes_on_longer_than_there_is_time(go: Any) -> None:
    bench = Bench(seconds=100)

    go(bench, make_plan(FULL, only=["ceiling", "check"]), minutes=4)

    assert [timeout for _, timeout, _ in bench.asked] == [240, 140]


def test_without_a_model_edits_are_skipped_and_the_rest_is_measured(go: Any) -> None:
    bench = Bench({"model": {"error": "OSError: disk full"}})

    figures, _ = go(bench, make_plan(FULL))

    assert bench.names == ["ceiling", "model", "check"]
    assert figures["modes"]["resident"] == {"skipped": "the model was not written"}
    assert figures["failed"] == {"model": "OSError: disk full"}


def test_nothing_is_warm_when_the_resident_model_failed(go: Any) -> None:
    bench = Bench({"resident": {"error": "ValueError: no"}})

    figures, _ = go(bench, make_plan(FULL, only=["resident", "warm_load", "offload_16"]))

    assert bench.names == ["model", "resident", "offload_16"]
    assert "nothing is warm" in figures["warm_load"]["skipped"]


def test_every_mode_of_ours_takes_the_attention_that_resident_chose(go: Any) -> None:
    bench = Bench({"resident": {"attention": "cudnn"}})

    go(bench, make_plan(FULL, rivals=["official"]))

    chosen = {wanted.name: wanted.mode.attention for wanted, _, _ in bench.asked if wanted.mode}
    left_alone = {"resident", "warm_load", "official"}
    assert {name for name, attention in chosen.items() if attention == "cudnn"} == chosen.keys() - left_alone
    assert {chosen[name] for name in left_alone} == {"auto"}


def test_a_mode_that_does_not_fit_its_budget_is_measured_without_it_and_counts_as_failed(go: Any) -> None:
    error = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    bench = Bench({"offload_8": {"error": error}})

    figures, _ = go(bench, make_plan(FULL, only=["offload_8"]))

    assert [(wanted.name, is_capped) for wanted, _, is_capped in bench.asked[1:]] == [
        ("offload_8", True),
        ("offload_8", False),
    ]
    assert figures["modes"]["offload 8 GiB"] == {"median_job_seconds": 9.0, "out_of_memory": error}


@pytest.mark.parametrize(
    ("figures", "complaint"),
    [
        ({"median_job_seconds": 7.1, "is_close": True, "is_finite": True, "image_deviation": 60.0}, None),
        ({"skipped": "no time"}, None),
        ({"error": "ValueError: no"}, "ValueError: no"),
        ({"is_close": False}, "CPU"),
        ({"is_finite": False}, "number"),
        ({"image_deviation": 0.3}, "flat"),
        ({"compiler_failed": True}, "nothing was compiled"),
        ({"mean_pixel_difference": 3.0}, None),  # other kernels, as without compiling
        ({"budget_gib": 8.0, "mean_pixel_difference": 0.5, "peak_driver_gib": 7.9}, None),
        ({"budget_gib": 8.0, "mean_pixel_difference": 0.6}, "0.6 of 255"),
        ({"budget_gib": 8.0, "peak_driver_gib": 8.1}, "8.1 GiB were in use"),
        ({"budget_gib": 8.0, "out_of_memory": "..."}, "did not fit"),
    ],
)
def test_a_measurement_must_hold_to_more_than_ending(figures: dict[str, Any], complaint: str | None) -> None:
    found = list(complaints(figures))

    assert (found == []) if complaint is None else (len(found) == 1 and complaint in found[0])


def test_a_saturated_picture_is_told_from_others(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "white.png")

    figures = describe_image(tmp_path / "white.png", tmp_path / "white.png")

    assert figures["clipped_share"] == 1
    assert figures["mean_pixel_difference"] == 0  # equal, and yet nothing is shown by it
    assert list(complaints(figures)) != []


@pytest.mark.parametrize(
    ("log", "status", "reason"),
    [
        (
            "Traceback (most recent call last):\n  File ...\ntorch._dynamo.exc.Unsupported: Graph break\n"
            "  Explanation: Dynamo: no\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n",
            1,
            "torch._dynamo.exc.Unsupported: Graph break",
        ),
        (
            "ValueError: first\n\nDuring handling of the above exception, another exception occurred:\n\n"
            "torch.AcceleratorError: CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`\n",
            1,
            "torch.AcceleratorError: CUDA error: device-side assert triggered",
        ),
        (
            "2026-11-25 14:32:41,211 INFO kontext.offload.memory offload_plan\n/a/b.py:3: UserWarning: old\n",
            -9,
            "ended by signal 9: /a/b.py:3: UserWarning: old",
        ),
        ("", -9, "ended by signal 9: without a word"),
    ],
)
def test_a_failure_is_told_by_its_last_exception(log: str, status: int, reason: str) -> None:
    assert why(log, status) == reason


def test_a_failed_process_leaves_its_whole_log(place: Place) -> None:
    # There is no model in the folder.
    found = measure(Measurement("resident", "resident", 1, Mode()), place, timeout_seconds=100)

    assert re.match(r"kontext\.errors\.CheckpointError: .*full", found["error"])
    assert "Traceback" in (place.logs / "resident.log").read_text()


def test_a_process_that_takes_too_long_says_where_it_was(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "SECONDS_TO_SAY_WHERE", 0.0)

    found = measure(Measurement("ceiling", "ceiling", 1), place, timeout_seconds=0.2)

    assert found["error"] == "not done after 0 s; the log says where it was"
    assert (place.logs / "ceiling.log").exists()


def test_an_engine_that_cannot_be_imported_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.gpu.diffusers_rival", None)

    with pytest.raises(edits.Unavailable, match="diffusers: "):
        edits.load_rival("diffusers", tmp_path, torch.device("cpu"), False, lambda done, total: None)


def test_an_engine_that_is_not_here_is_skipped_with_the_reason(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(official, "SUBMODULE", "third_party/nowhere")
    mode = asdict(Mode("official"))
    request = {"name": "official", "scale": "tiny", "device": "cpu", "folder": place.folder, "mode": mode}

    found = measurement.figures_of({**request, "is_capped": True})

    assert found["skipped"].startswith("official: third_party/nowhere is empty: run git submodule")
    assert list(complaints(found)) == []


def test_what_is_no_number_is_seen_before_it_becomes_8_bits() -> None:
    class Model:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents / 0

    model = Model()
    with edits.last_decoded(model) as decoded:
        model.decode(torch.zeros(1))

    assert not decoded[0].isfinite().all()
    assert "decode" not in vars(model)


def test_the_allocator_leaves_the_context_its_share_of_the_budget() -> None:
    # 600 MiB of 8 GiB on a card of 80 GiB.
    assert edits.allocator_share(8 * GIB, 80 * GIB) == pytest.approx((8 - 600 / 1024) / 80)
    assert edits.allocator_share(100 * GIB, 80 * GIB) == 1


def test_a_second_run_on_a_day_does_not_take_the_place_of_the_first(tmp_path: Path) -> None:
    first = free_name(tmp_path, "NVIDIA H100 80GB HBM3")
    (tmp_path / f"{first}.json").write_text("{}")

    assert first.startswith("nvidia-h100-80gb-hbm3-20")
    assert free_name(tmp_path, "NVIDIA H100 80GB HBM3") == f"{first}-2"


def test_a_model_that_is_kept_is_not_written_again(tmp_path: Path) -> None:
    written = []

    for _ in range(2):
        with workplace(tmp_path, "kept", is_kept=True) as folder:
            request = {"name": "model", "scale": "tiny", "device": "cpu", "folder": str(folder), "mode": {}}
            written.append(measurement.figures_of(request))

    assert written == [{}, {"was_there": True}]
    assert (tmp_path / "kept" / "full" / "config.json").exists()


def test_a_model_that_is_not_kept_is_taken_away(tmp_path: Path) -> None:
    with workplace(tmp_path, "model", is_kept=False) as folder:
        (folder / "full").mkdir()

    assert list(tmp_path.iterdir()) == []


def test_the_shallow_model_is_no_larger_for_a_cpu_than_its_picture() -> None:
    for scale in (FULL, TINY):
        assert scale.shallow.preferred_resolutions == ((scale.shallow_pixels, scale.shallow_pixels),)


def test_the_most_steps_are_skipped_and_counted(tmp_path: Path) -> None:
    (measurement,) = [one for one in make_plan(TINY) if one.name == "step_cache"]
    assert measurement.mode is not None
    model, _ = edits.load(MODEL, torch.device("cpu"), measurement.mode)

    jobs = edits.run_jobs(model, replace(TINY, steps=7), 1, tmp_path / "image.png")

    assert jobs.steps_computed == 6  # the first 4 and the last 2
