"""The engine that the settings ask for."""

from __future__ import annotations

import os
import re

import pytest

from jobs.errors import SettingsError
from jobs.settings import load_settings
from kontext import BudgetError, Kontext
from kontext.offload.memory import Resident, Streamed
from worker.check import check_machine
from worker.engines import check_official_settings, load_engine
from worker.run_edit import describe_engine
from worker.settings import Settings


def engine(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Kontext:
    """The engine of the bundled model under DG_FLUX_KONTEXT_* variables."""
    for name, value in {"DEVICE": "cpu", **variables}.items():
        monkeypatch.setenv(f"DG_FLUX_KONTEXT_{name}", value)
    loaded = load_engine(load_settings(Settings))
    assert isinstance(loaded, Kontext)
    return loaded


def test_without_settings_all_weights_are_resident_and_encoded_inputs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engine(monkeypatch)

    assert isinstance(loaded.memory, Resident)
    assert loaded.cache.limit_bytes == 256 * 2**20


def test_offload_keeps_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = engine(monkeypatch, OFFLOAD="true", VRAM_BUDGET="300MiB")

    assert isinstance(loaded.memory, Streamed)
    assert loaded.memory.plan is not None
    assert loaded.memory.plan.peak_bytes <= 300 * 2**20


def test_a_budget_that_cannot_work_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match="the VRAM budget is 1 MiB"):
        engine(monkeypatch, OFFLOAD="true", VRAM_BUDGET="1MiB")


def test_the_cache_has_the_size_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine(monkeypatch, CACHE_BYTES="1MiB").cache.limit_bytes == 2**20
    assert engine(monkeypatch, CACHE_BYTES="0").cache.limit_bytes == 0


@pytest.mark.parametrize(
    ("variables", "approximations"),
    [
        ({}, ()),
        ({"CACHE": "off"}, ()),
        (
            {"CACHE": "first-block:0.12"},
            ("first-block cache, threshold 0.12, first 4 and last 2 steps computed, at most 3 skipped in a row",),
        ),
    ],
)
def test_a_step_cache_is_an_approximation_and_off_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], approximations: tuple[str, ...]
) -> None:
    assert describe_engine(engine(monkeypatch, **variables)).approximations == approximations


def test_an_engine_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="ENGINE='unknown': expected native, official, standin or module:callable"):
        engine(monkeypatch, ENGINE="unknown")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CACHE", "first-block"),
        ("PRECISION", "fp8"),
        ("ATTENTION", "math"),
        ("COMPILE", "true"),
        ("KERNELS", "fast"),
    ],
)
def test_the_official_engine_refuses_what_it_would_ignore(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"^DG_FLUX_KONTEXT_{name}: not for the official engine; .* set DG_FLUX_KONTEXT_ENGINE=native$"
    with pytest.raises(SettingsError, match=message):
        engine(monkeypatch, ENGINE="official", **{name: value})

    failed = [finding.found for finding in check_machine(load_settings(Settings)) if finding.subject == "model"]
    assert len(failed) == 1
    assert re.match(message, failed[0])


def test_the_official_engine_takes_what_it_does_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"CACHE": "off", "PRECISION": "bf16", "ATTENTION": "auto", "COMPILE": "false", "KERNELS": "reference"}
    for name, value in values.items():
        monkeypatch.setenv(f"DG_FLUX_KONTEXT_{name}", value)

    check_official_settings(load_settings(Settings))


@pytest.mark.parametrize(("kernels", "is_fast"), [("auto", False), ("fast", True), ("reference", False)])
def test_a_cpu_takes_other_kernels_for_bfloat16_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, kernels: str, is_fast: bool
) -> None:
    monkeypatch.setattr("kontext.device.cpu_computes_in_bfloat16", lambda: True)

    assert engine(monkeypatch, KERNELS=kernels).networks.autoencoder.channels_last == is_fast


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, "backend:native"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, None),  # its older name
    ],
)
def test_the_allocator_is_set_unless_somebody_has(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # so that both are as before in the end
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    engine(monkeypatch)

    assert os.environ.get("PYTORCH_ALLOC_CONF") == expected
