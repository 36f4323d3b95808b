"""A clone is small and an installation repeats itself."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from producer.cli import app as producer_app
from worker.commands import app as worker_app

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CLONE_LIMIT_BYTES = 55 * 2**20


def test_every_package_that_the_project_asks_for_has_one_exact_version() -> None:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    requirements = [line for group in groups for line in group]
    pins = dict(line.split("==") for line in constraints())

    missing = {package_name(line) for line in requirements} - {package_name(name) for name in pins} - {PROJECT["name"]}

    assert missing == set()
    # A local build such as +cpu would keep everybody else from installing.
    assert [name for name, version in pins.items() if not re.fullmatch(r"[\w.]+", version)] == []


def test_torch_is_pinned_first_and_kombu_may_choose_its_packaging() -> None:
    assert constraints()[0] == "torch==2.13.0"
    assert "packaging" not in {package_name(line) for line in constraints()}


def test_a_clone_stays_small() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")

    size = sum(path.stat().st_size for name in names if (path := ROOT / name).is_file())

    assert size < CLONE_LIMIT_BYTES


@pytest.mark.parametrize(("name", "app"), [("producer", producer_app), ("worker", worker_app)])
def test_both_commands_tell_the_version_of_the_project(name: str, app: typer.Typer) -> None:
    told = CliRunner().invoke(app, ["--version"])
    helped = CliRunner().invoke(app, ["--help"])

    assert (told.exit_code, told.output) == (0, f"{name} {PROJECT['version']}\n")
    assert "FLUX.1 Kontext edits" in helped.output


def constraints() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def package_name(requirement: str) -> str:
    """`Some_Package[extra]>=1; marker` as `some-package`."""
    match = re.match(r"[\w.-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_the_bill_of_materials_names_what_users_install_and_its_licences(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "bill-of-materials"), str(tmp_path)], check=True)

    (bill,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.cdx.json"))
    versions = {component["name"].lower(): component["version"] for component in bill["components"]}
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "kontext-edits")
    assert {"celery", "redis", "torch", "boto3", "pyarrow", "starlette"} <= versions.keys()
    assert not {"pytest", "mypy", "diffusers", "cyclonedx-python-lib"} & versions.keys()
    licences = (tmp_path / "LICENCES.txt").read_text()
    assert f"redis {versions['redis']}: MIT\n" in licences
    assert ": unknown" not in licences
