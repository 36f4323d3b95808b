"""`worker prepare`: what a first start finds out and compiles is kept once a second, cold start has shown its worth."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageChops

from jobs.errors import SettingsError
from jobs.machine import end_with_parent
from kontext.prepared.lock import lock
from kontext.prepared.manifest import MANIFEST, key_of, read_manifest
from kontext.prepared.preparation import WAIT_SECONDS, find, lock_of
from kontext.prepared.private_folder import PrivateFolder, write_private
from worker.settings import Settings

Say = Callable[[str], None]
MOST_BYTES = 2**32


class NotProven(Exception):
    """Raised when the second start is not what it should be; the message says in what."""


@dataclass(frozen=True)
class Started:
    """One start: its seconds from the start of the process, what it said at its end, and its images."""

    ready_seconds: float
    processor_seconds: float  # which tell something on a busy machine, too
    said: Mapping[str, Any]
    images: list[Path]

    @property
    def pace(self) -> str:
        return f"ready after {self.ready_seconds:.1f} s, {self.processor_seconds:.1f} s of the processor"


def prepare(settings: Settings, root: Path, within_seconds: float | None, again: bool, say: Say) -> None:
    """Prepare for the settings' model, options and machine, or find it done.

    Args:
        root: folder of all that is prepared.
        within_seconds: the second start has to be ready after so many; None for any number.
        again: also if it is done.
        say: takes lines for people.
    Raises:
        NotProven: the second start took too long, compiled something, or made other images. Nothing is kept.
        SettingsError: the engine has nothing to prepare, or the folder cannot be written.
        SystemExit: a start failed; with its code, after its own words.
    """
    if settings.flux_kontext_engine != "native":
        raise SettingsError("DG_FLUX_KONTEXT_ENGINE: only the native engine has something to prepare")
    # In a process of its own: a context on the GPU would be in the way of those that start there.
    facts = _only_line(_child(root, ["facts"], {}))
    place = root / key_of(facts)
    with _alone(place, say):
        _, found = find(root, facts)
        if found and found.proof and not again:
            say(f"prepared already, ready after {found.proof['ready_seconds']} s: {place}; --again prepares anew")
            return
        prefix = f".preparing-{place.name}-"
        for left in root.glob(f"{prefix}*"):  # by one that was killed
            shutil.rmtree(left)
        with TemporaryDirectory(prefix=prefix, dir=root) as work:
            _prove(Path(work), place, within_seconds, say)


def _prove(work: Path, place: Path, within_seconds: float | None, say: Say) -> None:
    first = _start(work, "first")
    say(f"first start, on {first.said['device']}: {first.pace}")
    second = _start(work, "second")
    say(f"second start, with what is prepared: {second.pace}")
    faults = list(_faults(first, second, within_seconds))
    if faults:
        raise NotProven("; ".join(faults))
    proof = {
        "first_ready_seconds": round(first.ready_seconds, 1),
        "ready_seconds": round(second.ready_seconds, 1),
        "first_processor_seconds": round(first.processor_seconds, 1),
        "processor_seconds": round(second.processor_seconds, 1),
        "images": len(second.images),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    nbytes = _keep(work / "prepared" / place.name, place, proof)
    say(f"nothing was compiled in it, and its {len(second.images)} images are those of the first, bit for bit")
    say(f"kept {nbytes / 1e6:.1f} MB in {place}; workers with DG_PREPARED_DIR={place.parent} use it")


def _faults(first: Started, second: Started, within_seconds: float | None) -> Iterator[str]:
    if not second.said["used"]:
        yield "the second start found nothing that fits it; its log says why"
    if second.said["compiled_anew"]:
        yield f"the second start compiled {second.said['compiled_anew']} files that the first had not kept"
    for ours, theirs in zip(first.images, second.images, strict=True):
        if difference := _difference(ours, theirs):
            yield f"image {ours.name} of the second start differs by up to {difference} of 255"
    if within_seconds is not None and second.ready_seconds > within_seconds:
        yield f"the second start was ready after {second.ready_seconds:.1f} s, not within {within_seconds:g} s"


def _difference(ours: Path, theirs: Path) -> int:
    """Largest difference of a value of two images."""
    with Image.open(ours) as one, Image.open(theirs) as other:
        return max(ImageChops.difference(one, other).tobytes())


def _keep(made: Path, place: Path, proof: dict[str, Any]) -> int:
    """Write the folder of the first start, with the proof, to its place; its bytes."""
    with PrivateFolder(made) as folder:
        manifest = replace(read_manifest(folder), proof=proof)
        contents = {name: folder.read(name, MOST_BYTES) for name in manifest.files}
    contents[MANIFEST] = manifest.encoded()
    write_private(place, contents)
    return sum(map(len, contents.values()))


@contextmanager
def _alone(place: Path, say: Say) -> Iterator[None]:
    """Hold the lock under which this folder is written, as workers do that prepare."""
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = lock(lock_of(place), 0)
        if held is None:
            say(f"another process prepares this; waiting for at most {WAIT_SECONDS:.0f} s")
            held = lock(lock_of(place), WAIT_SECONDS)
    except OSError as error:
        raise SettingsError(f"{place.parent} cannot be written: {error}") from error
    if held is None:
        raise NotProven(f"another process has prepared this for {WAIT_SECONDS:.0f} s and goes on; try again later")
    try:
        yield
    finally:
        os.close(held)


def _start(work: Path, name: str) -> Started:
    """Start once, with empty caches of the compilers."""
    images, cache = work / name / "images", work / name / "cache"
    for folder in (images, cache):
        folder.mkdir(parents=True)
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    started = time.monotonic()
    lines = _child(work / "prepared", ["start", str(images)], caches)
    processor_seconds = next(lines)["processor_seconds"]
    seconds = time.monotonic() - started
    return Started(seconds, processor_seconds, _only_line(lines), sorted(images.iterdir()))


def _child(root: Path, arguments: list[str], environment: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Run `worker.start_once`; what it prints, while it runs.

    Raises:
        SystemExit: it failed, and has said why.
    """
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "worker.start_once", *arguments],
        env={**os.environ, **environment, "DG_PREPARED_DIR": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=end_with_parent(signal.SIGTERM),
    ) as process:
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
    if process.returncode:
        raise SystemExit(process.returncode if process.returncode > 0 else 128 - process.returncode)


def _only_line(lines: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The one line that is left, and the end of the process after it."""
    (line,) = lines
    return line
