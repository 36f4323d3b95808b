"""Folders whose files only we can have written: what is read, and what is refused and why."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kontext.prepared.private_folder import NotPrivate, PrivateFolder, write_private

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "prepared"
    write_private(path, {"a": b"content", "b": b""})
    return path


def read(path: Path, name: str = "a") -> bytes:
    with PrivateFolder(path) as folder:
        return folder.read(name, 100)


def test_a_folder_of_ours_is_read_and_is_for_us_alone(folder: Path) -> None:
    assert (read(folder), read(folder, "b")) == (b"content", b"")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "a").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]


def test_it_is_replaced_as_a_whole(folder: Path) -> None:
    write_private(folder, {"c": b"new"})

    assert read(folder, "c") == b"new"
    assert [path.name for path in folder.iterdir()] == ["c"]


def test_what_a_killed_process_has_left_goes(folder: Path) -> None:
    (folder.parent / ".prepared-xyz").mkdir()

    write_private(folder, {})

    assert [path.name for path in folder.parent.iterdir()] == ["prepared"]


def test_no_more_is_read_than_asked_for(folder: Path) -> None:
    with PrivateFolder(folder) as opened:
        assert opened.read("a", 3) == b"cont"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_folder_that_others_may_write_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)

    with pytest.raises(NotPrivate, match=rf"may be written by others \(mode {mode:o}\)"):
        read(folder)


@pytest.mark.parametrize("mode", [0o755, 0o500])
def test_a_folder_that_others_may_only_read_is_read(folder: Path, mode: int) -> None:
    folder.chmod(mode)

    assert read(folder) == b"content"


def test_a_file_that_others_may_write_is_refused(folder: Path) -> None:
    (folder / "a").chmod(0o664)

    with pytest.raises(NotPrivate, match="prepared/a may be written by others"):
        read(folder)


@AS_ROOT
@pytest.mark.parametrize("name", ["", "a"])
def test_what_belongs_to_somebody_else_is_refused(folder: Path, name: str) -> None:
    os.chown(folder / name, 12345, -1)

    with pytest.raises(NotPrivate, match="belongs to user 12345, neither to us"):
        read(folder)


@AS_ROOT
def test_what_belongs_to_root_is_read_by_everybody(folder: Path) -> None:
    own = [parent for parent in folder.parents if Path(tempfile.gettempdir()) in parent.parents]
    for path in (folder, folder / "a", *own):
        path.chmod(0o755)
    os.seteuid(12345)
    try:
        content = read(folder)
    finally:
        os.seteuid(0)

    assert content == b"content"


def test_links_and_pipes_are_not_followed(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    with pytest.raises(OSError, match="link"):
        read(folder.parent / "link")

    (folder / "link").symlink_to(folder / "a")
    with pytest.raises(OSError, match="link"):
        read(folder, "link")

    os.mkfifo(folder / "pipe")
    with pytest.raises(NotPrivate, match="no plain file"):
        read(folder, "pipe")


def test_a_folder_that_is_not_there_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")
