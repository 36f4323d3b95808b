"""What torch's compiler and Triton have compiled, as one file that brings it to another process.

torch's own way (`torch.compiler.save_cache_artifacts`) carries graphs but neither the kernels that a C++ compiler has
made for a CPU nor Triton kernels outside a graph, as ours are: with it alone a load on a CPU took 174 s instead of 240,
with all files of the caches 28 (docs/performance-log.md). Both caches name their files by content, so that they may lie
anywhere; only Triton's lists of the files of a kernel say where, and are written anew.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"
PREFIX = "kontext-compiled-"
LIST = "__grp__"  # begins the name of a list of Triton's: {"child_paths": {name: path}}
COMPRESSION = 1  # of 9; more takes longer than it saves


class CacheFolders(NamedTuple):
    """Where the two compilers keep what they have compiled, and look first."""

    inductor: Path
    triton: Path


def usual_folders() -> CacheFolders:
    """The folders that the environment names; without, new ones for this process, and the environment names them."""
    inductor = os.environ.get(INDUCTOR) or str(_new_folder(None))
    os.environ[INDUCTOR], os.environ[TRITON] = inductor, os.environ.get(TRITON) or f"{inductor}/triton"
    return CacheFolders(Path(inductor), Path(os.environ[TRITON]))


def fresh_folders() -> CacheFolders:
    """Empty folders for this process, which the environment names from now on.

    They lie in the usual one, since a folder for temporary files may not allow code to be run.
    """
    usual = os.environ.get(INDUCTOR) or None
    if usual:
        Path(usual).mkdir(parents=True, exist_ok=True)
    made = _new_folder(usual)
    folders = CacheFolders(made / "inductor", made / "triton")
    os.environ[INDUCTOR], os.environ[TRITON] = map(str, folders)
    return folders


def _new_folder(parent: str | None) -> Path:
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def has_compiled() -> bool:
    """Whether this process has compiled something, which then lies in its memory and in no fresh folder."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return dynamo is not None and bool(dynamo.counters["stats"]["unique_graphs"])


def compiled_files(folders: CacheFolders) -> dict[str, Path]:
    """All files of the caches, but for locks, by their names in the packed file."""
    return {
        f"{kind}/{path.relative_to(folder)}": path
        for kind, folder in (("inductor", folders.inductor), ("triton", folders.triton))
        for path in _files(folder)
        if not (kind == "inductor" and (path.is_relative_to(folders.triton) or PREFIX in str(path.relative_to(folder))))
    }


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix != ".lock" and path.is_file())


def pack(folders: CacheFolders) -> bytes:
    """One file of all that lies in the folders; empty if nothing does."""
    files = compiled_files(folders)
    packed = io.BytesIO()
    with ZipFile(packed, "w", ZIP_DEFLATED, compresslevel=COMPRESSION) as archive:
        for name, path in files.items():
            content = path.read_bytes()
            archive.writestr(name, _placed(content, None) if path.name.startswith(LIST) else content)
    return packed.getvalue() if files else b""


def unpack(packed: bytes, folders: CacheFolders) -> frozenset[str]:
    """Put the files where they are looked for, beside what is there already; their names.

    Raises:
        OSError: a folder cannot be written.
        zipfile.BadZipFile: the bytes are not what `pack` has made.
    """
    with ZipFile(io.BytesIO(packed)) as archive:
        for name in archive.namelist():
            kind, _, inside = name.partition("/")
            path, content = getattr(folders, kind) / inside, archive.read(name)
            _put(path, _placed(content, path.parent) if path.name.startswith(LIST) else content)
        return frozenset(archive.namelist())


def _placed(content: bytes, folder: Path | None) -> bytes:
    """A list of Triton's with its files in a folder, or with their names alone; they lie beside it."""
    paths = json.loads(content)["child_paths"]
    moved = {name: str(folder / Path(path).name) if folder else Path(path).name for name, path in paths.items()}
    return json.dumps({"child_paths": moved}).encode()


def _put(path: Path, content: bytes) -> None:
    """Write a file at once: another worker with the same folders may load it meanwhile."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=".")
    with open(descriptor, "wb") as file:
        file.write(content)
    os.replace(made, path)
