"""`make units`: boots a Debian with a real systemd, installs the units, and does to them what happens in production.

    python -m tests.deploy.booted [--root FOLDER]

Needs root, debootstrap and systemd-nspawn (sudo apt-get install debootstrap systemd-container), and a .venv of the
Python that Debian 12 has, 3.11: its packages are mounted into the machine. FOLDER keeps the Debian tree for the next
time (500 MB, some two minutes). The model is the bundled one on the CPU. Prints a line for each thing that was tried.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tests.waiting import eventually

ROOT = Path(__file__).parents[2]
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,redis-server"
SITE_PACKAGES = "/opt/packages"
OUTPUTS = "file:///var/lib/kontext/output"
SETTINGS = """
DG_FILE_ROOTS=/srv/in
DG_LEASE_SECONDS=5
DG_DRAIN_SECONDS=20
DG_FLUX_KONTEXT_DEVICE=cpu
OMP_NUM_THREADS=1
"""
GPUS = ("0", "1")
WORKERS = tuple(f"kontext-worker@{gpu}.service" for gpu in GPUS)
CHECKS: list[Callable[[Machine], str]] = []


def check(act: Callable[[Machine], str]) -> Callable[[Machine], str]:
    """Enter a check: it tells what was seen, or raises AssertionError; the next one finds the service running."""
    CHECKS.append(act)
    return act


class Machine:
    """A booted Debian; commands run in it as root.

    Args:
        leader: its first process, as seen from outside.
    """

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._enter = ["nsenter", "-t", str(leader), "-a"]

    def run(self, *command: str, may_fail: bool = False) -> str:
        """Run a command; what it prints."""
        ended = subprocess.run([*self._enter, *command], capture_output=True, text=True)
        said = ended.stdout + ended.stderr
        assert may_fail or ended.returncode == 0, f"{' '.join(command)} ended with {ended.returncode}: {said}"
        return ended.stdout

    def systemctl(self, *arguments: str, may_fail: bool = False) -> str:
        return self.run("systemctl", "--no-pager", *arguments, may_fail=may_fail)

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", unit, "--value", "-p", name).strip()

    def submit(self, batch: str, count: int) -> None:
        """Submit a table of edits that take some seconds each."""
        table = io.StringIO()
        rows = csv.writer(table)
        rows.writerow(["image", "prompt", "seed"])
        rows.writerows(["/srv/in/cat.png", "make it snow", number] for number in range(count))
        (self.root / "srv" / f"{batch}.csv").write_text(table.getvalue())
        command = ["submit", f"/srv/{batch}.csv", "--batch", batch, "--num-inference-steps", "20"]
        self.run("env", f"DG_OUTPUT_URI={OUTPUTS}", "/opt/kontext/bin/producer", *command)

    def results(self, batch: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.run("/opt/kontext/bin/producer", "results", batch))))

    def states(self, batch: str) -> list[str]:
        return [row["state"] for row in self.results(batch)]

    def all_succeed(self, batch: str) -> str:
        """Wait until all jobs of a batch have succeeded; says how many runs they took."""
        eventually(lambda: not {"queued", "running"} & set(self.states(batch)), 900, what=f"{batch} ends")
        rows = self.results(batch)
        assert [row["error"] for row in rows if row["state"] != "succeeded"] == []
        assert len({row["output"] for row in rows}) == len(rows)
        return f"{len(rows)} jobs succeeded in {sum(int(row['attempts']) for row in rows)} runs"


@check
def start_returns_once_the_workers_are_ready(machine: Machine) -> str:
    machine.systemctl("start", "kontext.target")
    assert [machine.shown(unit, "ActiveState") for unit in WORKERS] == ["active", "active"]
    machine.submit("first", 2)
    return f"status: {machine.shown(WORKERS[0], 'StatusText')}; {machine.all_succeed('first')}"


@check
def a_worker_that_is_killed_is_started_again_and_its_job_runs_again(machine: Machine) -> str:
    machine.submit("killed", 6)
    eventually(lambda: "running" in machine.states("killed"), what="a job runs")
    return _restarted(machine, WORKERS[0], signal.SIGKILL, "killed")


@check
def a_worker_that_is_frozen_is_ended_by_the_watchdog(machine: Machine) -> str:
    machine.submit("frozen", 6)
    eventually(lambda: "running" in machine.states("frozen"), what="a job runs")
    return _restarted(machine, WORKERS[1], signal.SIGSTOP, "frozen")


def _restarted(machine: Machine, unit: str, number: signal.Signals, batch: str) -> str:
    before, began = int(machine.shown(unit, "NRestarts")), time.monotonic()
    machine.systemctl("kill", "--kill-who=main", f"--signal={number.name}", unit)
    eventually(lambda: int(machine.shown(unit, "NRestarts")) == before + 1, what="a restart")
    eventually(lambda: machine.shown(unit, "ActiveState") == "active", what="the worker is ready again")
    return f"ready again after {time.monotonic() - began:.0f} s; {machine.all_succeed(batch)}"


@check
def a_rolling_restart_during_thirty_jobs_loses_none(machine: Machine) -> str:
    machine.submit("rolling", 30)
    eventually(lambda: "succeeded" in machine.states("rolling"), what="the first job of thirty")
    for unit in WORKERS:
        machine.systemctl("restart", unit)
    left = sum(state != "succeeded" for state in machine.states("rolling"))
    return f"{left} jobs were left when both were up again; {machine.all_succeed('rolling')}"


@check
def a_stop_drains_and_the_rest_waits(machine: Machine) -> str:
    machine.submit("drained", 10)
    eventually(lambda: "running" in machine.states("drained"), what="a job runs")
    machine.systemctl("stop", "kontext.target")  # which returns before the workers have drained
    eventually(lambda: {machine.shown(unit, "ActiveState") for unit in WORKERS} == {"inactive"}, what="both have ended")
    stopped = machine.states("drained")
    assert set(stopped) <= {"succeeded", "queued"}, stopped
    assert [machine.shown(unit, "Result") for unit in WORKERS] == ["success", "success"]
    machine.systemctl("start", "kontext.target")
    waited = stopped.count("queued")
    return f"{waited} waited while all was stopped; {machine.all_succeed('drained')}"


@check
def a_wrong_setting_ends_with_one_line_and_is_not_tried_again(machine: Machine) -> str:
    said = _refused(machine, "DG_LEASE_SECONDS=soon")
    assert "DG_LEASE_SECONDS" in said, said
    return said


@check
def missing_weights_end_with_one_line_and_are_not_tried_again(machine: Machine) -> str:
    return _refused(machine, "DG_FLUX_KONTEXT_MODEL=/models/kontext")


def _refused(machine: Machine, setting: str) -> str:
    """Start a worker with a setting that cannot work; the last line of its log."""
    settings = machine.root / "etc/kontext/kontext.env"
    well = settings.read_text()
    settings.write_text(f"{well}\n{setting}\n")
    unit = WORKERS[0]
    machine.systemctl("restart", unit, may_fail=True)
    eventually(lambda: machine.shown(unit, "ActiveState") == "failed", what="the unit has failed")
    time.sleep(15)  # longer than RestartSec=
    assert machine.shown(unit, "ActiveState") == "failed"
    code = machine.shown(unit, "ExecMainStatus")
    said = machine.run("journalctl", "-u", unit, "-o", "cat", "-t", "worker", "-n", "1").strip()
    settings.write_text(well)
    machine.systemctl("start", unit)
    return f"code {code}: {said}"


@check
def the_installer_may_run_again_and_undo_leaves_settings_and_data(machine: Machine) -> str:
    machine.run("/srv/systemd/install", *GPUS)
    machine.run("/srv/systemd/install", "--undo")
    units = machine.systemctl("list-unit-files", "kontext*", "--no-legend", may_fail=True)
    assert units.strip() == "", units
    assert (machine.root / "etc/kontext/kontext.env").exists()
    assert any((machine.root / "var/lib/kontext/output").rglob("*.png"))
    return "no unit is left, settings and outputs are"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder that keeps the Debian tree")
    parser.add_argument("--only", default="", help="checks whose name fits this regular expression, besides the start")
    asked = parser.parse_args()
    given, chosen = asked.root, [CHECKS[0], *(act for act in CHECKS[1:] if re.search(asked.only, act.__name__))]
    missing = [name for name in ("debootstrap", "systemd-nspawn") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or sys.version_info[:2] != (3, 11):
        parser.error("needs root, debootstrap, systemd-nspawn, and a .venv of Python 3.11")
    with tempfile.TemporaryDirectory() as temporary:
        root = (given or Path(temporary) / "root").absolute()
        prepare(root)
        with booted(root) as machine:
            machine.run("/srv/systemd/install", *GPUS)
            with (root / "etc/kontext/kontext.env").open("a") as settings:
                settings.write(SETTINGS)
            return 0 if all(tried(act, machine) for act in chosen) else 1


def tried(act: Callable[[Machine], str], machine: Machine) -> bool:
    """Make a check and tell what was seen; False when it fails, with the end of the journal."""
    try:
        seen, is_well = act(machine), True
    except AssertionError as error:
        journal = machine.run("journalctl", "-n", "30", "-o", "short-monotonic")
        seen, is_well = f"FAILED: {error}\n{journal}", False
    sys.stdout.write(f"{act.__name__.replace('_', ' ')} | {seen}\n")
    sys.stdout.flush()
    return is_well


def prepare(root: Path) -> None:
    """Make the tree of a Debian with our program in /opt/kontext and the units to install."""
    if not (root / "usr/bin/systemctl").exists():
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for path in (
        "etc/kontext",
        "etc/systemd/system/kontext.target.wants",
        "var/lib/kontext",
        "var/log/journal",
        "var/lib/redis",
        "opt/kontext",
    ):
        shutil.rmtree(root / path, ignore_errors=True)
    for path in (root / "etc/systemd/system").rglob("kontext*"):
        path.unlink()
    (root / "var/lib/redis").mkdir()
    shutil.copytree(ROOT / "deploy/systemd", root / "srv/systemd", dirs_exist_ok=True)
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    (root / "srv/in").mkdir(exist_ok=True)
    Image.new("RGB", (128, 96), "orange").save(root / "srv/in/cat.png")
    with tempfile.TemporaryDirectory() as wheels:
        # Debian's 3.11.2 wants, for redis-py, what a later 3.11 has in asyncio.
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels]
        subprocess.run([*pip, str(ROOT), "async-timeout"], check=True)
        shutil.copytree(wheels, root / "srv/wheels", dirs_exist_ok=True)
    within = ["chroot", str(root)]
    subprocess.run([*within, "python3", "-m", "venv", "/opt/kontext"], check=True)
    install = "/opt/kontext/bin/pip install --quiet --no-deps --no-index /srv/wheels/*.whl"
    subprocess.run([*within, "sh", "-c", install], check=True)
    (root / "opt/kontext/lib/python3.11/site-packages/packages.pth").write_text(f"{SITE_PACKAGES}\n")
    subprocess.run([*within, "chown", "redis:redis", "/var/lib/redis"], check=True)


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """Boot the tree, with a network of its own; it is switched off when the block is left."""
    packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
    mounted = [f"--bind-ro={packages.resolve()}:{SITE_PACKAGES}", f"--directory={root}"]
    log = root.with_name(f"{root.name}.log")
    with log.open("wb") as out:
        process = subprocess.Popen([*command, *mounted], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield eventually(lambda: _up(root, process.pid), 300, what=f"Debian is up, see {log}")
    finally:
        process.terminate()  # which nspawn passes on as an orderly power off
        process.wait(60)


def _up(root: Path, nspawn: int) -> Machine | None:
    """The machine once it has booted; nspawn's child is its first process only after some steps."""
    children = Path(f"/proc/{nspawn}/task/{nspawn}/children").read_text().split()
    machine = Machine(root, int(children[0])) if children else None
    if machine and machine.systemctl("is-system-running", may_fail=True).strip() in ("running", "degraded"):
        return machine
    return None


if __name__ == "__main__":
    sys.exit(main())
