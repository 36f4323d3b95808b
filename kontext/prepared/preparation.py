"""What a start finds prepared, and what it keeps for the starts after it.

look_up --+--> used: choices and compiled code come from the folder
          +--> under way: nothing fits; this process has the lock, and `keep` writes what it has found out
          '--> none: the folder cannot be written, or another process has been at it for too long
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from weakref import finalize

from kontext.prepared.compiled import (
    CacheFolders,
    compiled_files,
    fresh_folders,
    has_compiled,
    pack,
    unpack,
    usual_folders,
)
from kontext.prepared.lock import lock
from kontext.prepared.manifest import (
    COMPILED,
    MANIFEST,
    Choices,
    Manifest,
    Unusable,
    entry_of,
    key_of,
    read_manifest,
    read_prepared,
)
from kontext.prepared.private_folder import NotPrivate, PrivateFolder, write_private

WAIT_SECONDS = 180.0
"""Longest wait for a process that prepares the same: a first start, compiler and all, takes about as long."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Preparation:
    """A start's part in what is prepared. A lock that it holds ends with `keep`, with it, or with the process."""

    choices: Choices | None = None  # found in the folder
    proof: Mapping[str, object] | None = None
    _write: _Writing | None = None
    _folders: CacheFolders | None = None
    _found: frozenset[str] = frozenset()

    @property
    def is_used(self) -> bool:
        return self.choices is not None

    def compiled_anew(self) -> list[str]:
        """Files of the compilers' caches beyond those that were prepared."""
        return [] if self._folders is None else [n for n in compiled_files(self._folders) if n not in self._found]

    def keep(self, choices: Choices) -> None:
        """Write what this start has found out, if it is its turn; does nothing when called again.

        A folder that cannot be written costs a line in the log.
        """
        writing, self._write = self._write, None
        if writing is not None:
            writing.write(choices, self._folders)


@dataclass(eq=False)
class _Writing:
    """The right to write a prepared folder."""

    path: Path
    facts: Mapping[str, str]
    held: int  # the lock's descriptor
    _release: Callable[[], object] = field(init=False)

    def __post_init__(self) -> None:
        self._release = finalize(self, os.close, self.held)

    def write(self, choices: Choices, folders: CacheFolders | None) -> None:
        packed = pack(folders) if folders else b""
        files = {COMPILED: packed} if packed else {}
        manifest = Manifest(self.facts, choices, {name: entry_of(content) for name, content in files.items()})
        try:
            write_private(self.path, {**files, MANIFEST: manifest.encoded()})
        except OSError as error:
            log.warning("prepared_not_written folder=%s reason=%s", self.path, error)
        else:
            log.info("prepared_written folder=%s bytes=%d", self.path, sum(map(len, files.values())))
        finally:
            self._release()


def look_up(
    root: Path | None, facts: Mapping[str, str], compiles: bool, wait_seconds: float = WAIT_SECONDS
) -> Preparation:
    """Find what was prepared for these facts, and bring compiled code to where the compilers look; or prepare to keep.

    Nothing but time depends on it: whatever is wrong with the folder costs a line in the log.

    Args:
        root: folder of all that is prepared; None for nothing.
        compiles: whether the model will be compiled, if the compiler works.
        wait_seconds: for another process that prepares the same now.
    """
    if root is None:
        return Preparation()
    path = root / key_of(facts)
    if found := _use(path, facts, compiles):
        return found
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = _locked(path, wait_seconds)
    except OSError as error:
        log.warning("prepared_missing folder=%s reason=%s; it is not prepared now: %s", path, _why(root, facts), error)
        return Preparation()
    if held is None:
        log.warning("prepared_missing folder=%s reason=another process is at it for %.0f s", path, wait_seconds)
        return Preparation()
    writing = _Writing(path, facts, held)
    if found := _use(path, facts, compiles):  # written while we waited
        return found
    if compiles and has_compiled():
        log.warning("prepared_missing folder=%s reason=%s; this process has compiled before", path, _why(root, facts))
        return Preparation()
    try:
        folders = fresh_folders() if compiles else None
    except OSError as error:
        log.warning("prepared_missing folder=%s reason=%s; no room to compile in: %s", path, _why(root, facts), error)
        return Preparation()
    log.warning("prepared_missing folder=%s reason=%s; this start prepares it", path, _why(root, facts))
    return Preparation(_write=writing, _folders=folders)


def find(root: Path, facts: Mapping[str, str]) -> tuple[Path, Manifest | None]:
    """Folder for these facts, and its manifest; None if a load would not use it."""
    path = root / key_of(facts)
    try:
        return path, read_prepared(path, facts)[0]
    except (OSError, NotPrivate, Unusable):
        return path, None


def lock_of(path: Path) -> Path:
    """File whose lock whoever writes a prepared folder holds."""
    return path.with_name(f".{path.name}.lock")


def _locked(path: Path, wait_seconds: float) -> int | None:
    at = lock_of(path)
    held = lock(at, 0)
    if held is not None or not wait_seconds:
        return held
    log.info("prepared_waits folder=%s most_seconds=%.0f", path, wait_seconds)
    return lock(at, wait_seconds)


def _use(path: Path, facts: Mapping[str, str], compiles: bool) -> Preparation | None:
    try:
        manifest, packed = read_prepared(path, facts)
        folders = usual_folders() if compiles else None
        found = unpack(packed, folders) if folders and packed else frozenset()
    except FileNotFoundError:
        return None
    except (NotPrivate, Unusable, OSError, zipfile.BadZipFile) as error:
        log.warning("prepared_ignored folder=%s reason=%s", path, error)
        return None
    log.info("prepared_used folder=%s files=%d proven=%s", path, len(found), "yes" if manifest.proof else "no")
    return Preparation(manifest.choices, manifest.proof, _folders=folders, _found=found)


def _why(root: Path, facts: Mapping[str, str]) -> str:
    """How the nearest of what is prepared differs, in one line."""
    others = [there for there in _facts_beside(root) if there != facts]
    if not others:
        return "nothing is prepared"
    differences = [[name for name, value in facts.items() if there.get(name) != value] for there in others]
    nearest = min(zip(differences, others, strict=True), key=lambda pair: len(pair[0]))
    told = (f"{name} {nearest[1].get(name, '?')}, here {facts[name]}" for name in nearest[0])
    return f"prepared for other starts, the nearest for {', '.join(told)}"


def _facts_beside(root: Path) -> Iterator[Mapping[str, str]]:
    for path in root.iterdir() if root.is_dir() else ():
        try:
            with PrivateFolder(path) as folder:
                yield read_manifest(folder).facts
        except (OSError, NotPrivate, Unusable):
            continue
