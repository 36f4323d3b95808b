"""The stand-in engine: the promises of an engine, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import SettingsError
from jobs.settings import load_settings
from kontext import EditRequest
from worker.engines import load_engine
from worker.settings import Settings
from worker.standin import FAULTS, StandinEngine

IMAGE = Image.new("RGB", (48, 32))
DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"


def ignore(step: int, total: int) -> None:
    return


def request(prompt: str = "make it snow", **parameters: Any) -> EditRequest:
    return EditRequest((IMAGE,), prompt, **{"num_inference_steps": 3, "seed": 300, **parameters})


def test_the_settings_choose_it_and_the_environment_sets_it_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DG_FLUX_KONTEXT_ENGINE", "standin")
    monkeypatch.setenv("STANDIN_STEP_SECONDS", "0.01")
    monkeypatch.setenv("STANDIN_TURNS", str(tmp_path / "turns"))
    engine = load_engine(load_settings(Settings))
    assert isinstance(engine, StandinEngine)

    edited = engine.run(request(), ignore)

    began_at, ended_at = map(float, (tmp_path / "turns").read_text().split())
    assert edited.timings["sample"] >= 0.03
    assert ended_at - began_at >= 0.02  # by another clock, which may be set


def test_it_reports_its_steps_and_its_colour_follows_from_the_seed() -> None:
    steps: list[tuple[int, int]] = []

    edited = StandinEngine().run(request(), lambda *step: steps.append(step))

    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert (edited.seed, edited.image.size, edited.image.getpixel((0, 0))) == (300, (48, 32), (300 - 256, 1, 0))
    assert edited.timings.keys() == {"encode", "sample", "decode"}


def test_the_image_has_the_size_asked_for() -> None:
    assert StandinEngine().run(request(width=16, height=64), ignore).image.size == (16, 64)


@pytest.mark.parametrize(("prompt", "said"), [("raise", "the engine raised"), ("break the device", "CUDA error")])
def test_a_prompt_that_names_a_fault_has_it(prompt: str, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        StandinEngine().run(request(prompt), ignore)


def test_an_edit_that_needs_much_memory_succeeds_where_memory_is_spared() -> None:
    engine = StandinEngine()

    with pytest.raises(RuntimeError, match="out of memory"):
        engine.run(request("need much memory"), ignore)
    with engine.spare_memory():
        assert engine.run(request("need much memory"), ignore).image.size == IMAGE.size


def test_a_fault_of_the_environment_is_every_jobs() -> None:
    with pytest.raises(RuntimeError, match="the engine raised"):
        StandinEngine(fault="raise").run(request(), ignore)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("STANDIN_FAULT", "explode", "STANDIN_FAULT='explode': expected one of raise, "),
        ("STANDIN_STEP_SECONDS", "slow", "STANDIN_STEP_SECONDS='slow': expected a number of seconds, 0 or more"),
        ("STANDIN_STEP_SECONDS", "nan", "STANDIN_STEP_SECONDS='nan': expected a number"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=said):
        load_engine(load_settings(Settings, flux_kontext_engine="standin"))


def test_the_documentation_names_every_fault_and_variable() -> None:
    said = DOCS.read_text()

    assert [
        name for name in (*FAULTS, "STANDIN_STEP_SECONDS", "STANDIN_FAULT", "STANDIN_TURNS") if f"`{name}`" not in said
    ] == []
