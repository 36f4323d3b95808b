"""`worker check` looks into the files of the model as loading would."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kontext.loading import facts_of_load
from kontext.prepared.manifest import MANIFEST, Choices, Manifest, key_of
from kontext.prepared.private_folder import write_private
from kontext.weights.layout import bundled_model
from tests.cases.weights import TRANSFORMER, comfy_scaled_fp8, model_with
from worker.check import Level, check_device, check_inputs, check_machine, check_model, check_prepared
from worker.engines import engine_options
from worker.settings import Settings


def settings_for(model: Path | None) -> Settings:
    return Settings(_env_file=None, flux_kontext_model=None if model is None else str(model))


def test_a_good_model_is_whole() -> None:
    findings = list(check_model(settings_for(None)))

    assert [(finding.subject, finding.level) for finding in findings] == [("model", Level.OK), ("weights", Level.OK)]


def test_files_that_are_no_weights_fail_the_check(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_model(), tmp_path / "model"))
    (folder / TRANSFORMER).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2380\n")

    findings = {(finding.subject, finding.level): finding.found for finding in check_machine(settings_for(folder))}

    assert "is a Git LFS pointer" in findings["model", Level.FAIL]
    assert "git lfs pull" in findings["model", Level.FAIL]


def test_what_is_prepared_is_found_or_its_lack_is_named(tmp_path: Path) -> None:
    settings = settings_for(None).model_copy(update={"prepared_dir": tmp_path, "flux_kontext_device": "cpu"})

    (lacking,) = check_prepared(settings)
    facts = facts_of_load(None, engine_options(settings))
    manifest = Manifest(facts, Choices("default", "default"), proof={"ready_seconds": 4.5})
    write_private(tmp_path / key_of(facts), {MANIFEST: manifest.encoded()})
    (found,) = check_prepared(settings)

    assert (lacking.level, found.level) == (Level.WARN, Level.OK)
    assert "worker prepare" in lacking.remedy
    assert "proven: ready after 4.5 s" in found.found
    assert not list(check_prepared(settings_for(None)))


def test_a_gpu_that_is_too_old_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for function, answer in {
        "is_available": True,
        "device_count": 1,
        "get_device_properties": SimpleNamespace(name="V100", total_memory=16 * 2**30),
        "get_device_capability": (7, 0),
        "get_device_name": "V100",
    }.items():
        monkeypatch.setattr(torch.cuda, function, lambda *device, answer=answer: answer)

    (finding,) = check_device(settings_for(None))

    assert finding.level is Level.FAIL
    assert "V100 has compute capability 7.0" in finding.found


@pytest.mark.parametrize("device", ["gpu", "cuda:97", "xpu:0"])
def test_a_device_that_is_none_fails_the_check(device: str) -> None:
    settings = settings_for(None).model_copy(update={"flux_kontext_device": device})

    (finding,) = check_device(settings)

    assert finding.level is Level.FAIL
    assert device in finding.found
    assert "DG_FLUX_KONTEXT_DEVICE" in finding.remedy


def test_less_exact_weights_are_a_warning(tmp_path: Path) -> None:
    findings = list(check_model(settings_for(model_with(tmp_path / "model", comfy_scaled_fp8))))

    assert (findings[-1].level, findings[-1].found) == (Level.WARN, "transformer stored in fp8")


def test_a_proxy_is_told_without_its_password() -> None:
    settings = Settings(_env_file=None, proxy="http://me:secret@proxy.example:3128")

    (finding,) = (finding for finding in check_inputs(settings) if finding.subject == "proxy")

    assert finding.found.startswith("public web addresses are called through http://")
    assert "proxy.example:3128" in finding.found
    assert "secret" not in finding.found
