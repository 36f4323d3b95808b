"""Fetches a model's files from the Hugging Face hub, and checks them against their SHA-256.

What was fetched is written beside the files, into `kontext-weights.json`: repository, commit, and size and SHA-256 of
each file, as the hub gives them. `worker check --verify` compares the folder with it, without a network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jobs.errors import SettingsError
from kontext.weights.hub import KONTEXT_PATTERNS

LOCK_FILE = "kontext-weights.json"
LICENCE_PATTERNS = ("LICENSE*", "README.md")
CHUNK_BYTES = 16 * 2**20
SPARE_BYTES = 2**30


class FetchError(SettingsError):
    """Raised when a model's files cannot be fetched; the message is one line that says what to do."""


@dataclass(frozen=True)
class LockedFile:
    """A file of a model: path in the folder, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Lock:
    """Files of a model as they were fetched from a commit of a repository."""

    repository: str
    commit: str
    files: tuple[LockedFile, ...]

    @classmethod
    def read(cls, folder: Path) -> Lock | None:
        """The lock of a folder; None when it has none.

        Raises:
            SettingsError: the file is no lock.
        """
        path = folder / LOCK_FILE
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text())
            return cls(fields["repository"], fields["commit"], tuple(LockedFile(**item) for item in fields["files"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(f"{path} is damaged ({error}): run worker fetch-model again") from error

    def write(self, folder: Path) -> None:
        (folder / LOCK_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def fetch_model(
    repository: str,
    folder: Path,
    revision: str | None,
    report: Callable[[str], None],
    endpoint: str | None = None,
) -> Lock:
    """Bring a model's files into a folder, and check all of them; what is there and right is not fetched again.

    Args:
        repository: hub id such as "black-forest-labs/FLUX.1-Kontext-dev".
        revision: branch, tag or commit; None: the newest.
        report: told what is about to be done.
        endpoint: address of the hub; None: HF_ENDPOINT, else huggingface.co.
    Raises:
        FetchError: the hub refuses or does not answer, there is no room, or a file differs from the hub's.
    """
    with _hub_errors(repository, revision):
        information = HfApi(endpoint=endpoint).model_info(repository, revision=revision, files_metadata=True)
    patterns = (*KONTEXT_PATTERNS, *LICENCE_PATTERNS)
    wanted = [
        file for file in information.siblings or [] if any(fnmatch(file.rfilename, pattern) for pattern in patterns)
    ]
    if not any(fnmatch(file.rfilename, "*kontext*.safetensors") for file in wanted):
        raise FetchError(f"{repository} has no *kontext*.safetensors: name a repository with FLUX.1 Kontext weights")
    sizes = {file.rfilename: file.size or 0 for file in wanted}
    missing = sum(size for name, size in sizes.items() if _size(folder / name) != size)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if missing + SPARE_BYTES > free:
        raise FetchError(
            f"{folder} has {free / 1e9:.1f} GB free, and {missing / 1e9:.1f} GB are to be fetched: make room"
        )
    total = sum(sizes.values())
    report(f"{repository} at {str(information.sha)[:12]}: {total / 1e9:.1f} GB, {missing / 1e9:.1f} GB to fetch")

    def download(names: Sequence[str], again: bool = False) -> None:
        with _hub_errors(repository, revision):
            snapshot_download(
                repository,
                revision=information.sha,
                local_dir=folder,
                allow_patterns=list(names),
                force_download=again,
                endpoint=endpoint,
            )

    download(patterns)
    report("checking SHA-256")
    expected = {file.rfilename: file.lfs.sha256 for file in wanted if file.lfs is not None}
    files = tuple(LockedFile(name, sizes[name], expected.get(name) or sha256(folder / name)) for name in sorted(sizes))
    lock = Lock(repository, str(information.sha), files)
    if wrong := differences(lock, folder):
        report(f"fetching again: {'; '.join(wrong.values())}")
        download(list(wrong), again=True)
    if wrong := differences(lock, folder):
        raise FetchError(f"{'; '.join(wrong.values())}: the hub gave the same twice, so look at {folder}'s disk")
    lock.write(folder)
    return lock


def differences(lock: Lock, folder: Path) -> dict[str, str]:
    """Say of each file, by its path in the folder, that is missing or differs from the lock what is wrong with it."""
    found = {file.path: _difference(file, folder / file.path) for file in lock.files}
    return {name: words for name, words in found.items() if words is not None}


def _difference(file: LockedFile, path: Path) -> str | None:
    size = _size(path)
    if size is None:
        return f"{path} is missing"
    if size != file.size:
        return f"{path} has {size:,} bytes instead of {file.size:,}"
    return None if sha256(path) == file.sha256 else f"{path} differs from the hub's (SHA-256)"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal; 34 GB take about a minute from a fast disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@contextmanager
def _hub_errors(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's library raises into one line that says what to do."""
    page = f"https://huggingface.co/{repository}"
    try:
        yield
    except GatedRepoError as error:
        raise FetchError(
            f"{repository} asks for its licence to be accepted: do so at {page}, then log in with: hf auth login, or "
            "set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
        ) from error
    except RepositoryNotFoundError as error:
        raise FetchError(f"the hub has no {repository}, or your token may not see it: see {page}") from error
    except RevisionNotFoundError as error:
        raise FetchError(f"{repository} has no revision {revision!r}: see {page}/commits") from error
    except HFValidationError as error:
        raise FetchError(f"{repository!r} is no hub id: expected owner/name") from error
    except OfflineModeIsEnabled as error:
        raise FetchError("HF_HUB_OFFLINE is set, so nothing can be fetched: unset it") from error
    except Exception as error:  # whatever the library's transport raises; what was fetched so far is kept
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FetchError(
            f"the hub does not answer ({reason}): run the command again, it goes on where it was"
        ) from error
