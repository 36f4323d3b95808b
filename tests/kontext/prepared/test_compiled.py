"""Files of the compilers' caches on their way to another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.prepared.compiled import (
    INDUCTOR,
    TRITON,
    CacheFolders,
    compiled_files,
    fresh_folders,
    pack,
    unpack,
    usual_folders,
)


@pytest.fixture
def caches(tmp_path: Path) -> CacheFolders:
    """Caches as the compilers leave them, Triton's within torch's as is usual."""
    folders = CacheFolders(tmp_path / "inductor", tmp_path / "inductor" / "triton")
    kernel = folders.triton / "KERNEL"
    kernel.mkdir(parents=True)
    (kernel / "k.cubin").write_bytes(b"machine code")
    (kernel / "__grp__k.json").write_text(json.dumps({"child_paths": {"k.cubin": str(kernel / "k.cubin")}}))
    (folders.inductor / "fxgraph").mkdir()
    (folders.inductor / "fxgraph" / "g").write_bytes(b"graph")
    (folders.inductor / "c.lock").touch()
    return folders


def test_files_are_found_again_elsewhere(caches: CacheFolders, tmp_path: Path) -> None:
    there = CacheFolders(tmp_path / "there", tmp_path / "triton there")

    names = unpack(pack(caches), there)

    assert (
        names
        == {"inductor/fxgraph/g", "triton/KERNEL/k.cubin", "triton/KERNEL/__grp__k.json"}
        == {*compiled_files(there)}
    )
    assert (there.inductor / "fxgraph/g").read_bytes() == b"graph"
    assert (there.triton / "KERNEL/k.cubin").read_bytes() == b"machine code"


def test_triton_finds_the_files_of_a_kernel_where_they_are_now(caches: CacheFolders, tmp_path: Path) -> None:
    there = CacheFolders(tmp_path / "there", tmp_path / "there" / "triton")

    unpack(pack(caches), there)

    kernel = there.triton / "KERNEL"
    assert json.loads((kernel / "__grp__k.json").read_text()) == {"child_paths": {"k.cubin": str(kernel / "k.cubin")}}


def test_what_is_there_already_stays(caches: CacheFolders, tmp_path: Path) -> None:
    there = CacheFolders(tmp_path / "there", tmp_path / "there" / "triton")
    (there.inductor / "fxgraph").mkdir(parents=True)
    (there.inductor / "fxgraph" / "g").write_bytes(b"loaded by another worker")

    unpack(pack(caches), there)

    assert (there.inductor / "fxgraph" / "g").read_bytes() == b"loaded by another worker"


def test_nothing_compiled_is_nothing_packed(tmp_path: Path) -> None:
    assert pack(CacheFolders(tmp_path / "a", tmp_path / "b")) == b""


def test_fresh_folders_lie_in_the_usual_one_and_are_not_packed_with_it(
    caches: CacheFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INDUCTOR, str(caches.inductor))
    monkeypatch.setenv(TRITON, str(caches.triton))
    before = set(compiled_files(caches))

    fresh = fresh_folders()

    assert (os.environ[INDUCTOR], os.environ[TRITON]) == (str(fresh.inductor), str(fresh.triton))
    assert fresh.inductor.is_relative_to(caches.inductor)
    assert pack(fresh) == b""
    fresh.inductor.mkdir()
    (fresh.inductor / "new").touch()
    assert set(compiled_files(caches)) == before


def test_without_a_folder_in_the_environment_a_private_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (INDUCTOR, TRITON):
        monkeypatch.setenv(name, "")  # put back at the end
        monkeypatch.delenv(name)

    folders = usual_folders()

    assert folders.inductor.stat().st_mode & 0o777 == 0o700
    assert folders == usual_folders() == CacheFolders(Path(os.environ[INDUCTOR]), Path(os.environ[TRITON]))
    assert folders.triton == folders.inductor / "triton"


COMPILE = """
import sys
from pathlib import Path
import torch
from kontext.prepared.compiled import compiled_files, fresh_folders, pack, unpack, usual_folders

packed, is_first = Path(sys.argv[1]), sys.argv[2] == "first"
folders = fresh_folders() if is_first else usual_folders()
found = frozenset() if is_first else unpack(packed.read_bytes(), folders)
torch.compile(lambda x: (x.sin() * 2).relu())(torch.arange(64.0))
if is_first:
    packed.write_bytes(pack(folders))
print(len(set(compiled_files(folders)) - found))
"""


@pytest.mark.slow
def test_another_process_compiles_nothing_that_was_packed(tmp_path: Path) -> None:
    def compiled_in(start: str) -> int:
        (tmp_path / start).mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", COMPILE, str(tmp_path / "packed"), start],
            env={**os.environ, INDUCTOR: str(tmp_path / start), TRITON: str(tmp_path / start / "triton")},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(ran.stdout)

    assert compiled_in("first") > 0
    assert compiled_in("second") == 0
