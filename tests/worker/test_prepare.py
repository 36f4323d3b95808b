"""`worker prepare`: what it keeps, and what it does not since a second start was not as the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.errors import SettingsError
from kontext.prepared.lock import lock
from kontext.prepared.manifest import MANIFEST, Choices, Manifest, key_of
from kontext.prepared.preparation import find, lock_of
from kontext.prepared.private_folder import write_private
from worker.prepare import NotProven, prepare
from worker.settings import Settings

FACTS = {"device": "cuda"}


@dataclass
class Starts:
    """Processes that start a model, and what the second one does otherwise than the first."""

    second: dict[str, Any] = field(default_factory=dict)
    colour: int = 10
    count: int = 0

    def child(self, root: Path, arguments: list[str], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        if arguments == ["facts"]:
            yield FACTS
            return
        self.count += 1
        is_second = self.count % 2 == 0
        if not is_second:
            root.mkdir()
            write_private(root / key_of(FACTS), {MANIFEST: Manifest(FACTS, Choices("cudnn", "default")).encoded()})
        yield {"processor_seconds": 3.0}
        for name in ("0.png", "1.png"):
            Image.new("RGB", (4, 4), (0, self.colour if is_second else 10, 0)).save(Path(arguments[1]) / name)
        yield {"device": "cuda", "used": is_second, "compiled_anew": 0, **(self.second if is_second else {})}


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    starts = Starts()
    monkeypatch.setattr("worker.prepare._child", starts.child)
    return starts


def run(root: Path, *, within: float | None = None, again: bool = False) -> str:
    said: list[str] = []
    prepare(Settings(_env_file=None), root, within, again, said.append)
    return "\n".join(said)


def test_what_a_second_start_has_proven_is_kept_and_not_made_twice(starts: Starts, tmp_path: Path) -> None:
    said = run(tmp_path)

    folder, manifest = find(tmp_path, FACTS)
    assert manifest is not None
    assert manifest.choices == Choices("cudnn", "default")
    assert manifest.proof is not None
    assert manifest.proof["images"] == 2
    assert f"in {folder}; workers with DG_PREPARED_DIR={tmp_path} use it" in said
    assert {path.name for path in tmp_path.iterdir()} == {folder.name, lock_of(folder).name}

    assert "prepared already" in run(tmp_path)
    assert starts.count == 2
    assert "kept" in run(tmp_path, again=True)
    assert starts.count == 4


def test_what_a_worker_has_kept_unproven_is_made_anew(starts: Starts, tmp_path: Path) -> None:
    write_private(tmp_path / key_of(FACTS), {MANIFEST: Manifest(FACTS, Choices("flash", "default")).encoded()})

    run(tmp_path)

    manifest = find(tmp_path, FACTS)[1]
    assert manifest is not None
    assert (manifest.choices.attention, starts.count) == ("cudnn", 2)


@pytest.mark.parametrize(
    ("second", "colour", "within", "reason"),
    [
        ({"used": False}, 10, None, "the second start found nothing that fits it"),
        ({"compiled_anew": 3}, 10, None, "the second start compiled 3 files"),
        ({}, 12, None, "image 0.png of the second start differs by up to 2 of 255; image 1.png"),
        ({}, 10, 0.0, "not within 0 s"),
    ],
)
def test_nothing_is_kept_of_a_start_that_is_not_repeated(
    starts: Starts, tmp_path: Path, second: dict[str, Any], colour: int, within: float | None, reason: str
) -> None:
    starts.second, starts.colour = second, colour

    with pytest.raises(NotProven, match=reason):
        run(tmp_path, within=within)

    assert find(tmp_path, FACTS)[1] is None
    assert [path.name for path in tmp_path.iterdir()] == [lock_of(tmp_path / key_of(FACTS)).name]


@pytest.mark.usefixtures("starts")
def test_another_process_that_prepares_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.prepare.WAIT_SECONDS", 0.3)
    held = lock(lock_of(tmp_path / key_of(FACTS)), 0)
    assert held is not None

    with pytest.raises(NotProven, match="try again later"):
        run(tmp_path)

    os.close(held)
    assert "kept" in run(tmp_path)


@pytest.mark.usefixtures("starts")
def test_a_folder_that_cannot_be_written_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SettingsError, match="cannot be written"):
        run(tmp_path / "file" / "prepared")


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DG_FLUX_KONTEXT_DEVICE": "cpu", **variables}
    line = [sys.executable, "-m", "worker", "prepare", *words]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_a_wrong_use_ends_in_one_line(tmp_path: Path) -> None:
    nowhere = command()
    official = command(str(tmp_path), DG_FLUX_KONTEXT_ENGINE="official")

    assert (nowhere.returncode, official.returncode) == (2, 2)
    assert "error: name the folder" in nowhere.stderr
    assert "only the native engine" in official.stderr


@pytest.mark.slow
def test_a_start_that_fails_ends_with_its_own_code_and_words(tmp_path: Path) -> None:
    failed = command(str(tmp_path), DG_FLUX_KONTEXT_MODEL=str(tmp_path))

    assert failed.returncode == 4
    assert len(failed.stderr.splitlines()) == 1, failed.stderr
    assert f"error: {tmp_path}" in failed.stderr


@pytest.mark.slow
def test_two_real_starts_of_the_bundled_model_prove_what_is_kept(tmp_path: Path) -> None:
    variables = {"DG_FLUX_KONTEXT_OFFLOAD": "true", "DG_PREPARED_DIR": str(tmp_path)}

    made = command(**variables)
    found = command(**variables)

    assert made.returncode == 0, made.stderr
    assert "its 2 images are those of the first, bit for bit" in made.stderr
    assert "prepared already" in found.stderr
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["facts"]["offload"] == "True"
    assert manifest["proof"]["images"] == 2
