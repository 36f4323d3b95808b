"""`file://` reads and writes whole files, below the allowed folders only."""

from __future__ import annotations

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import EditFailure, ErrorCode, RejectJob, RetryJob
from jobs.settings import load_settings
from storage import Storage
from storage.settings import StorageSettings

NOBODY = 65534


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    folder.mkdir()
    return folder


@pytest.fixture
def storage(root: Path, tmp_path: Path) -> Storage:
    return Storage(
        load_settings(
            StorageSettings, file_roots=(root,), output_uri=(tmp_path / "output").as_uri(), max_input_bytes=1000
        )
    )


@contextmanager
def as_someone_without_rights(folder: Path) -> Iterator[None]:
    """Make the folder read-only; root, whom that does not stop, is someone else meanwhile."""
    folder.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        if is_root:
            os.setresuid(0, 0, 0)
        folder.chmod(0o755)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Make the kernel refuse to let a file grow beyond this size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def failure_of_reading(storage: Storage, uri: str) -> EditFailure:
    with pytest.raises(EditFailure) as error:
        storage.read(uri)
    assert "\n" not in error.value.message
    return error.value


def failure_of_publishing(storage: Storage, uri: str, data: bytes = b"picture") -> EditFailure:
    with pytest.raises(EditFailure) as error:
        storage.publish(uri, data, "image/png")
    assert "\n" not in error.value.message
    return error.value


# Reading


@pytest.mark.parametrize("name", ["cat.png", "a cat.png", "100%.png", "what?.png", "#1.png", "кот.png"])
def test_a_file_is_read_by_the_uri_that_stands_for_its_name(name: str, root: Path, storage: Storage) -> None:
    (root / name).write_bytes(b"a cat")

    assert storage.read((root / name).as_uri()) == b"a cat"


def test_signs_that_a_uri_should_encode_are_read_as_they_stand(root: Path, storage: Storage) -> None:
    (root / "what? #1.png").write_bytes(b"a cat")

    assert storage.read(f"file://{root}/what? #1.png") == b"a cat"
    assert storage.read(f"FILE://localhost{root}/what? #1.png") == b"a cat"


def test_an_empty_file_is_read_as_nothing(root: Path, storage: Storage) -> None:
    (root / "empty.png").touch()

    assert storage.read((root / "empty.png").as_uri()) == b""


def test_a_link_inside_the_folder_is_followed(root: Path, storage: Storage) -> None:
    (root / "cat.png").write_bytes(b"a cat")
    (root / "link.png").symlink_to("cat.png")

    assert storage.read((root / "link.png").as_uri()) == b"a cat"


def test_a_file_that_is_not_there_is_rejected(root: Path, storage: Storage) -> None:
    uri = (root / "dog.png").as_uri()

    failure = failure_of_reading(storage, uri)

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_NOT_FOUND
    assert failure.message == f"{uri}: No such file or directory; name a path that exists where the worker runs"


@pytest.mark.parametrize(
    "path",
    ["{tmp}/secret", "{root}/../secret", "{root}/%2e%2e/secret", "{root}/link", "{root}/folder/secret", "{root}", "/"],
)
def test_nothing_outside_the_folder_is_read(path: str, root: Path, tmp_path: Path, storage: Storage) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to("../secret")
    (root / "folder").symlink_to(tmp_path)

    failure = failure_of_reading(storage, "file://" + path.format(tmp=tmp_path, root=root))

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_FORBIDDEN
    assert "not below an allowed folder; add its folder to DG_FILE_ROOTS" in failure.message
    assert str(root) not in failure.message.removeprefix(f"file://{root}"), "a stranger learns what is open"


def test_a_folder_that_only_begins_like_an_allowed_one_is_not_read(root: Path, storage: Storage) -> None:
    neighbour = root.with_name("allowed-not")
    neighbour.mkdir()
    (neighbour / "cat.png").touch()

    assert failure_of_reading(storage, (neighbour / "cat.png").as_uri()).code is ErrorCode.INPUT_FORBIDDEN


def test_without_allowed_folders_nothing_is_read(root: Path) -> None:
    (root / "cat.png").write_bytes(b"a cat")

    failure = failure_of_reading(Storage(load_settings(StorageSettings)), (root / "cat.png").as_uri())

    assert failure.code is ErrorCode.INPUT_FORBIDDEN


def test_another_machines_files_are_not_read(storage: Storage) -> None:
    failure = failure_of_reading(storage, "file://server/share/cat.png")

    assert failure.code is ErrorCode.INPUT_FORBIDDEN
    assert failure.message.endswith("names the host 'server'; expected file:///absolute/path")


def test_a_null_byte_in_a_name_is_refused(root: Path, storage: Storage) -> None:
    assert failure_of_reading(storage, f"file://{root}/cat.png%00.jpg").code is ErrorCode.INPUT_FORBIDDEN


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(root: Path, storage: Storage) -> None:
    os.mkfifo(root / "pipe")

    failure = failure_of_reading(storage, (root / "pipe").as_uri())

    assert failure.code is ErrorCode.INPUT_FORBIDDEN
    assert "not a regular file" in failure.message


def test_folders_and_sockets_are_refused(root: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "folder").mkdir()
    monkeypatch.chdir(root)  # a socket's path has room for 108 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        codes = {failure_of_reading(storage, f"file://{root}/{name}").code for name in ("folder", "socket")}

    assert codes == {ErrorCode.INPUT_FORBIDDEN}


def test_a_file_of_the_largest_size_is_read_and_a_larger_one_refused(root: Path, storage: Storage) -> None:
    (root / "large.png").write_bytes(bytes(1000))
    (root / "larger.png").write_bytes(bytes(1001))

    assert len(storage.read((root / "large.png").as_uri())) == 1000
    failure = failure_of_reading(storage, (root / "larger.png").as_uri())
    assert failure.code is ErrorCode.INPUT_TOO_LARGE
    assert "1001 bytes, but DG_MAX_INPUT_BYTES is 1000" in failure.message


def test_a_file_that_the_worker_may_not_read_is_rejected(root: Path, storage: Storage) -> None:
    (root / "cat.png").write_bytes(b"a cat")
    (root / "cat.png").chmod(0o000)

    with as_someone_without_rights(root):
        failure = failure_of_reading(storage, (root / "cat.png").as_uri())

    assert isinstance(failure, RejectJob)
    assert failure.code is ErrorCode.INPUT_FORBIDDEN


# Publishing


def test_a_picture_is_published_below_folders_that_are_made_for_it(tmp_path: Path, storage: Storage) -> None:
    target = tmp_path / "output" / "spring" / "a cat.png"

    storage.publish(target.as_uri(), b"picture", "image/png")

    assert target.read_bytes() == b"picture"
    assert os.listdir(target.parent) == ["a cat.png"]


def test_a_repeated_publish_replaces_the_file(root: Path, storage: Storage) -> None:
    target = root / "cat.png"
    storage.publish(target.as_uri(), b"first", "image/png")
    with target.open("rb") as reader:
        storage.publish(target.as_uri(), b"second", "image/png")

        assert reader.read() == b"first"  # who had it open goes on reading a whole file
    assert target.read_bytes() == b"second"


def test_a_file_system_without_nameless_files_gets_its_picture_all_the_same(
    root: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)

    storage.publish((root / "cat.png").as_uri(), b"picture", "image/png")

    assert os.listdir(root) == ["cat.png"]
    assert (root / "cat.png").read_bytes() == b"picture"


def test_the_mode_of_a_file_follows_the_umask(root: Path, storage: Storage) -> None:
    before = os.umask(0o027)
    try:
        storage.publish((root / "cat.png").as_uri(), b"picture", "image/png")
    finally:
        os.umask(before)

    assert (root / "cat.png").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("path", ["{tmp}/cat.png", "{root}/../cat.png", "{root}/link/cat.png", "{root}", "{root}/"])
def test_nothing_is_published_outside_the_folders(path: str, root: Path, tmp_path: Path, storage: Storage) -> None:
    (root / "link").symlink_to(tmp_path)
    uri = "file://" + path.format(tmp=tmp_path, root=root)

    assert failure_of_publishing(storage, uri).code is ErrorCode.OUTPUT_FORBIDDEN
    with pytest.raises(RejectJob, match="not below an allowed folder"):
        storage.check_output(uri)
    assert not (tmp_path / "cat.png").exists()


def test_the_output_folder_may_be_written_and_not_read(tmp_path: Path, storage: Storage) -> None:
    uri = (tmp_path / "output" / "cat.png").as_uri()
    storage.publish(uri, b"picture", "image/png")

    assert failure_of_reading(storage, uri).code is ErrorCode.INPUT_FORBIDDEN


def test_a_write_that_breaks_off_leaves_nothing_behind(root: Path, storage: Storage) -> None:
    (root / "cat.png").write_bytes(b"old")

    with largest_file(100_000):
        failure = failure_of_publishing(storage, (root / "cat.png").as_uri(), bytes(200_000))

    assert isinstance(failure, RetryJob)
    assert failure.code is ErrorCode.OUTPUT_UNAVAILABLE
    assert os.listdir(root) == ["cat.png"]
    assert (root / "cat.png").read_bytes() == b"old"


def test_a_full_disk_is_a_reason_to_try_again(root: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    failure = failure_of_publishing(storage, (root / "cat.png").as_uri())

    assert isinstance(failure, RetryJob)
    assert failure.message.endswith("cat.png: No space left on device; a later try may do")
    assert os.listdir(root) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("folder", ErrorCode.OUTPUT_FORBIDDEN),
        ("file/cat.png", ErrorCode.OUTPUT_NOT_FOUND),
        ("file/spring/cat.png", ErrorCode.OUTPUT_NOT_FOUND),
    ],
)
def test_checking_finds_what_publishing_would_meet(name: str, code: ErrorCode, root: Path, storage: Storage) -> None:
    (root / "folder").mkdir()
    (root / "file").touch()

    with pytest.raises(RejectJob) as error:
        storage.check_output(f"file://{root}/{name}")

    assert error.value.code is failure_of_publishing(storage, f"file://{root}/{name}").code is code


def test_checking_finds_a_folder_without_write_permission(root: Path, storage: Storage) -> None:
    uri = (root / "spring" / "cat.png").as_uri()

    with as_someone_without_rights(root):
        with pytest.raises(RejectJob, match="check the path and the rights of the worker's user") as error:
            storage.check_output(uri)
        assert error.value.code is failure_of_publishing(storage, uri).code is ErrorCode.OUTPUT_FORBIDDEN


def test_checking_makes_no_folder(tmp_path: Path, storage: Storage) -> None:
    storage.check_output((tmp_path / "output" / "spring" / "cat.png").as_uri())

    assert not (tmp_path / "output").exists()


def test_a_name_longer_than_the_file_system_takes_is_rejected(root: Path, storage: Storage) -> None:
    assert failure_of_publishing(storage, f"file://{root}/{'x' * 300}.png").code is ErrorCode.OUTPUT_FORBIDDEN
