"""Narrow places: a file system that is soon full, and a control group with little memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.requirements import require
from tests.waiting import eventually


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of its own in a new folder, to be filled."""
    require(os.geteuid() == 0, "filling a disk needs root, to mount a small one")
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    require(mounted.returncode == 0, f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write a file until its disk has no byte left."""
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


@contextmanager
def little_memory(size_bytes: int) -> Iterator[Path | None]:
    """A control group that may take so much; whoever takes more is killed by the kernel.

    None where none can be made: in a plain container not even root may.
    """
    group = next(filter(None, (_made(parent, limit, size_bytes) for parent, limit in _places())), None)
    yield group
    if group:
        eventually(partial(_removed, group), what=f"{group} is empty and gone")


def killed_by_the_kernel(group: Path) -> int:
    """How many processes of the group the kernel has killed for their memory."""
    events = group / "memory.events"
    words = _words(events if events.exists() else group / "memory.oom_control")
    return int(words[words.index("oom_kill") + 1])


def _places() -> Iterator[tuple[Path, str]]:
    """Where a group with a limit may be made, and the file of its limit: for version 2, then for version 1."""
    root = Path("/sys/fs/cgroup")
    if "memory" in _words(root / "cgroup.subtree_control"):
        yield root, "memory.max"
    yield root / "memory", "memory.limit_in_bytes"


def _made(parent: Path, limit: str, size_bytes: int) -> Path | None:
    group = parent / f"kontext-edits-test-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
        (group / limit).write_text(str(size_bytes))
    except OSError:
        return None
    return group


def _removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []
