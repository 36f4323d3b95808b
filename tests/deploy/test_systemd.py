"""The files in deploy/ name only what exists, and the tools of those who read them find nothing to say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.names import is_known_command
from tests.requirements import require

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT_NAMES = ("kontext-worker@0.service", "kontext-callbacks.service", "kontext-door.service", "kontext.target")
CONFIGURATION = Path(__file__).parents[2] / "docs" / "configuration.md"


def verified(unit: str, folder: Path) -> str:
    """All that systemd-analyze says about a unit; it exits 0 for an unknown key and only warns."""
    require(shutil.which("systemd-analyze") is not None, "systemd-analyze is not installed")
    for path in UNITS.iterdir():
        # The program is not installed where tests run, and systemd-analyze would say so.
        name = path.name.replace("@.", "@0.")
        (folder / name).write_text(
            path.read_text()
            .replace("/opt/kontext/bin/worker", "/bin/true")
            .replace("/opt/kontext/bin/producer", "/bin/true")
        )
    command = ["systemd-analyze", "verify", "--man=no", str(folder / unit)]
    ended = subprocess.run(command, capture_output=True, text=True)
    lines = (ended.stdout + ended.stderr).splitlines()
    return "\n".join(line for line in lines if str(folder) in line or folder.name in line or unit in line)


@pytest.mark.parametrize("unit", UNIT_NAMES)
def test_systemd_has_nothing_to_say_about_a_unit(unit: str, tmp_path: Path) -> None:
    assert verified(unit, tmp_path) == ""


def test_a_misspelt_key_would_be_seen(tmp_path: Path) -> None:
    broken = tmp_path / "broken.service"
    broken.write_text("[Service]\nExecStart=/bin/true\nRestrat=always\n")

    assert "Restrat" in verified("broken.service", tmp_path)


def test_every_variable_of_units_and_settings_is_a_known_one() -> None:
    named = {
        name
        for path in UNITS.iterdir()
        for name in re.findall(r"^#?(?:Environment=)?(DG_[A-Z_]+)=", path.read_text(), re.MULTILINE)
    }

    assert named
    assert named <= set(re.findall(r"`(DG_[A-Z_]+)`", CONFIGURATION.read_text()))


def test_a_wrong_setting_and_a_missing_model_are_not_tried_for_ever() -> None:
    text = (UNITS / "kontext-worker@.service").read_text()

    assert "RestartPreventExitStatus=2 4" in text


def test_loras_lie_in_the_folder_that_the_worker_may_write() -> None:
    text = (UNITS / "kontext-worker@.service").read_text()

    assert "StateDirectory=kontext\n" in text
    assert "Environment=DG_LORA_CACHE_DIR=/var/lib/kontext/loras\n" in text


def test_the_account_gets_the_groups_of_gpus_also_where_a_host_lacks_them(tmp_path: Path) -> None:
    require(shutil.which("systemd-sysusers") is not None, "systemd-sysusers is not installed")
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", str(UNITS / "kontext.sysusers.conf")]

    ended = subprocess.run(command, capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    groups = [line.split(":") for line in (tmp_path / "etc" / "group").read_text().splitlines()]
    assert {name: members for name, _, _, members in groups} == {"video": "kontext", "render": "kontext", "kontext": ""}


def test_the_installer_is_a_shell_script_that_says_how_to_use_it() -> None:
    script = UNITS / "install"

    assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
    ended = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("install: ")


def test_every_daemon_starts_a_command_that_there_is_and_the_installer_knows_every_unit() -> None:
    script = (UNITS / "install").read_text()
    for path in UNITS.glob("*.service"):
        (started,) = re.findall(r"^ExecStart=/opt/kontext/bin/(.*)$", path.read_text(), re.MULTILINE)

        assert is_known_command(started.split())
        assert script.count(f"$units/{path.name}") == script.count(f"$here/{path.name}") == 1
